// The line buffer: Q banks of one pixel, so that Q neighbouring columns are read at once wherever they begin.
//
// A word of s_pix is Q columns of one channel; rows come one after another, in each the groups of columns, in each the
// channels. For stride 2 the even columns of a row lie in front of the odd ones, which begin half a word further, so
// that both halves of a word are written at once.
module kep_lines #(
    parameter Q  = 8,
    parameter XD = 2048,
    parameter XA = $clog2(XD)
) (
    input  wire           clk,
    input  wire           rst,
    input  wire           start,
    input  wire [8*Q-1:0] s_pix_data,
    input  wire           s_pix_valid,
    output wire           s_pix_ready,
    input  wire           stride2,
    input  wire [15:0]    channels,
    input  wire [15:0]    row_words,
    input  wire [15:0]    in_rows,
    input  wire [15:0]    pitch,
    input  wire [15:0]    phase,
    output reg  [15:0]    rows_loaded,
    input  wire           en,
    input  wire [XA-1:0]  at,
    input  wire [XA-1:0]  at_next,
    input  wire [Q-1:0]   next,
    output wire [8*Q-1:0] data
);
    localparam H = Q / 2;

    reg         loading, odd;
    reg  [15:0] word, channel, row_at, group_at;
    wire        takes   = s_pix_valid && s_pix_ready;
    wire        row_end = word == row_words - 1;
    wire        group_end = channel == channels - 1;
    wire [15:0] front   = row_at + group_at + channel;
    wire [15:0] back    = front + phase;
    assign s_pix_ready  = loading;

    always @(posedge clk)
        if (rst) begin
            loading     <= 1'b0;
            rows_loaded <= 16'd0;
        end else if (start) begin
            loading <= 1'b1;
            odd     <= 1'b0;
            {rows_loaded, word, channel, row_at, group_at} <= 80'd0;
        end else if (takes) begin
            word    <= row_end ? 16'd0 : word + 16'd1;
            channel <= group_end ? 16'd0 : channel + 16'd1;
            if (group_end) begin
                odd      <= !odd && stride2;
                group_at <= odd || !stride2 ? group_at + channels : group_at;
            end
            if (row_end) begin
                rows_loaded <= rows_loaded + 16'd1;
                row_at      <= row_at + pitch;
                group_at    <= 16'd0;
                odd         <= 1'b0;
                if (rows_loaded == in_rows - 1) loading <= 1'b0;
            end
        end

    genvar b;
    generate
        for (b = 0; b < Q; b = b + 1) begin : bank
            // With stride 2, lower banks take even columns of even words and odd columns of odd words.
            localparam EVEN = 2 * (b % H);
            wire        late = stride2 && (b < H ? odd : !odd);
            wire [7:0]  pixel = !stride2 ? s_pix_data[8*b+:8] : late ? s_pix_data[8*(EVEN+1)+:8] : s_pix_data[8*EVEN+:8];
            wire [15:0] to = late ? back : front;
            wire [XA-1:0] from = next[b] ? at_next : at;
            reg  [7:0]  memory [0:XD-1];
            reg  [7:0]  read;
            always @(posedge clk) begin
                if (takes) memory[to[XA-1:0]] <= pixel;
                if (en) read <= memory[from];
            end
            assign data[8*b+:8] = read;
        end
    endgenerate
endmodule
