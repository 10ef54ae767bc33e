// Reads s_cfg: the settings of a job, then its passes into halves of the buffers, the next one while one is issued.
//
// A pass: its word, two words a filter (bias; shift and multiplier), then for every channel and kernel row a mask of the
// row's elements, followed by P weights for each that stays. A pass whose elements are those of the one before it says
// so and brings weights only.
module kep_loader #(
    parameter P  = 16,
    parameter WD = 1024,
    parameter WA = $clog2(WD)
) (
    input  wire             clk,
    input  wire             rst,
    input  wire [8*P-1:0]   s_cfg_data,
    input  wire             s_cfg_valid,
    output wire             s_cfg_ready,
    output reg  [12*32-1:0] head,
    output reg  [8*32-1:0]  table_a,
    output reg  [8*32-1:0]  table_b,
    output reg  [8*16-1:0]  table_y,
    output wire             job_start,
    input  wire             job_done,
    output reg  [1:0]       full,
    output reg  [1:0]       index_half,
    output reg  [2*8-1:0]   filters,
    output reg  [2*7-1:0]   leads,
    output reg  [2*16-1:0]  ends,      // last slot of a group
    input  wire             issued_last,
    input  wire             issued_half,
    input  wire             freed,
    input  wire             freed_half,
    input  wire             en,
    input  wire [WA:0]      index_at,
    output reg  [17:0]      index,
    input  wire [WA:0]      weight_at,
    output reg  [8*P-1:0]   weight,
    input  wire             den,
    input  wire [$clog2(2*P)-1:0] parameter_at,
    output reg  [61:0]      parameters
);
    localparam HEAD = 3'd0, PASS = 3'd1, BIAS = 3'd2, SCALE = 3'd3, FETCH = 3'd4, STEP = 3'd5, AGAIN = 3'd6, WAIT = 3'd7;

    reg  [2:0]     state;
    reg  [5:0]     at;       // word of the settings
    reg            half, indexes;
    reg  [1:0]     busy;
    reg  [15:0]    loaded;   // passes
    reg  [8*P-1:0] masks;
    reg  [7:0]     left;     // masks in the word
    reg  [15:0]    channel;
    reg  [2:0]     ky;
    reg  [WA-1:0]  written;
    reg  [7:0]     filter;
    reg  [31:0]    bias;
    reg  [2*16-1:0] entries;
    reg            new_elements;

    wire [31:0] word     = s_cfg_data[31:0];
    wire [3:0]  kh       = head[3:0];
    wire [3:0]  kw       = head[7:4];
    wire [15:0] passes   = head[31:16];
    wire [15:0] channels = head[96+:16];
    wire [7:0]  in_word  = head[200+:8];
    wire [5:0]  last_at  = 6'd11 + {1'b0, kw, 1'b0} + {2'd0, kh};
    wire [7:0]  here     = masks[7:0] & ~(8'hff << kw);
    wire [7:0]  rest     = here & (here - 8'd1);
    wire        weighs   = state == STEP && here != 0;
    wire        takes    = s_cfg_valid && s_cfg_ready;
    wire        steps    = state == STEP && rest == 0 && (here == 0 || takes);
    wire        over     = steps && ky == kh[2:0] - 3'd1 && channel == channels - 1;
    wire        again_over = state == AGAIN && takes && written + 1'b1 == pass_entries[WA-1:0];
    wire [15:0] pass_entries = half ? entries[31:16] : entries[15:0];
    wire [7:0]  pass_filters = half ? filters[15:8] : filters[7:0];
    wire        done     = over || again_over;

    wire [5:0]  first_y  = 6'd12 + {1'b0, kw, 1'b0};
    wire [5:0]  after    = at - 6'd12;
    wire [2:0]  column   = after[3:1];
    wire [5:0]  behind   = at - first_y;
    wire [2:0]  line     = behind[2:0];

    assign job_start   = state == HEAD && takes && at >= 12 && at == last_at;
    assign s_cfg_ready = state == HEAD || (state == PASS && !busy[half]) || state == BIAS || state == SCALE
                      || state == FETCH || weighs || state == AGAIN;

    reg [2:0] kx;
    always @*
        casez (here)
            8'b???????1: kx = 3'd0;
            8'b??????10: kx = 3'd1;
            8'b?????100: kx = 3'd2;
            8'b????1000: kx = 3'd3;
            8'b???10000: kx = 3'd4;
            8'b??100000: kx = 3'd5;
            8'b?1000000: kx = 3'd6;
            default:     kx = 3'd7;
        endcase

    always @(posedge clk) begin
        if (rst) begin
            state <= HEAD;
            at    <= 6'd0;
            full  <= 2'd0;
            busy  <= 2'd0;
        end else begin
            if (issued_last) full[issued_half] <= 1'b0;
            if (freed) busy[freed_half] <= 1'b0;
            case (state)
                HEAD: if (takes) begin
                    at <= at + 6'd1;
                    if (at < 12) head[32*at[3:0]+:32] <= word;
                    else if (at < first_y) begin
                        if (at[0]) table_b[32*column+:32] <= word;
                        else       table_a[32*column+:32] <= word;
                    end else table_y[16*line+:16] <= word[15:0];
                    if (job_start) begin
                        state   <= PASS;
                        at      <= 6'd0;
                        half    <= 1'b0;
                        indexes <= 1'b1;
                        loaded  <= 16'd0;
                    end
                end
                PASS: if (takes) begin
                    if (half) {leads[13:7], filters[15:8], entries[31:16]} <= {word[31:25], word[23:16], word[15:0]};
                    else      {leads[6:0], filters[7:0], entries[15:0]}    <= {word[31:25], word[23:16], word[15:0]};
                    if (half) ends[31:16] <= word[15:0] + {9'd0, word[31:25]} - 16'd1;
                    else      ends[15:0]  <= word[15:0] + {9'd0, word[31:25]} - 16'd1;
                    new_elements     <= word[24];
                    index_half[half] <= word[24] ? !indexes : indexes;
                    if (word[24]) indexes <= !indexes;
                    busy[half] <= 1'b1;
                    filter     <= 8'd0;
                    written    <= {WA{1'b0}};
                    channel    <= 16'd0;
                    ky         <= 3'd0;
                    state      <= BIAS;
                end
                BIAS: if (takes) begin
                    bias  <= word;
                    state <= SCALE;
                end
                SCALE: if (takes) begin
                    filter <= filter + 8'd1;
                    state  <= filter + 8'd1 != pass_filters ? BIAS : new_elements ? FETCH : AGAIN;
                end
                FETCH: if (takes) begin
                    masks <= s_cfg_data;
                    left  <= in_word;
                    state <= STEP;
                end
                STEP: begin
                    if (weighs && takes) begin
                        written    <= written + 1'b1;
                        masks[7:0] <= (masks[7:0] & (8'hff << kw)) | rest;
                    end
                    if (steps) begin
                        masks <= masks >> kw;
                        left  <= left - 8'd1;
                        ky    <= ky == kh[2:0] - 3'd1 ? 3'd0 : ky + 3'd1;
                        if (ky == kh[2:0] - 3'd1) channel <= channel + 16'd1;
                        if (left == 1) state <= FETCH;
                    end
                end
                AGAIN: if (takes) written <= written + 1'b1;
                WAIT: if (job_done) state <= HEAD;
                default: state <= HEAD;
            endcase
            if (done) begin
                full[half] <= 1'b1;
                half       <= !half;
                loaded     <= loaded + 16'd1;
                state      <= loaded + 16'd1 == passes ? WAIT : PASS;
            end
        end
    end

    // ---- buffers: two halves each
    reg [17:0]    index_memory     [0:2*WD-1];
    reg [8*P-1:0] weight_memory    [0:2*WD-1];
    reg [61:0]    parameter_memory [0:2*P-1];

    always @(posedge clk) begin
        if (weighs && takes) index_memory[{indexes, written}] <= {kx, ky, channel[11:0]};
        if (en) index <= index_memory[index_at];
    end
    always @(posedge clk) begin
        if ((weighs || state == AGAIN) && takes) weight_memory[{half, written}] <= s_cfg_data;
        if (en) weight <= weight_memory[weight_at];
    end
    always @(posedge clk) begin
        if (state == SCALE && takes) parameter_memory[half ? P + filter : filter] <= {word[29:0], bias};
        if (den) parameters <= parameter_memory[parameter_at];
    end
endmodule
