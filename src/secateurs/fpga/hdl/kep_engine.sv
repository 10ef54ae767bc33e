// The sparse convolution engine: P filters x Q pixels meet one kernel element a cycle; pruned elements take none.
//
// All streams are AXI-Stream (valid, ready, data). docs/fpga.md has the drawing, the format of s_cfg and the cycles.
//   s_cfg  settings, masks and weights of a job (a layer, or some rows of one): one 32-bit field or P weights a word
//   s_pix  input pixels: rows, groups of Q columns, channels; Q unsigned bytes a word
//   s_res  what is added to the result, in the order of m_out; read by jobs that add
//   m_out  results: passes, rows, groups of Q columns, filters of the pass; last with the last word of a job
module kep_engine #(
    parameter P   = 16,    // lanes of filters, at least 4
    parameter Q   = 8,     // lanes of pixels, even
    parameter XD  = 2048,  // words of Q pixels that the line buffer holds
    parameter WD  = 1024,  // kernel elements of one pass
    parameter ACC = 32     // bits of a sum
) (
    input  wire           clk,
    input  wire           rst,
    input  wire [8*P-1:0] s_cfg_data,
    input  wire           s_cfg_valid,
    output wire           s_cfg_ready,
    input  wire [8*Q-1:0] s_pix_data,
    input  wire           s_pix_valid,
    output wire           s_pix_ready,
    input  wire [8*Q-1:0] s_res_data,
    input  wire           s_res_valid,
    output wire           s_res_ready,
    output wire [8*Q-1:0] m_out_data,
    output wire           m_out_valid,
    output wire           m_out_last,
    input  wire           m_out_ready
);
    localparam XA = $clog2(XD);
    localparam WA = $clog2(WD);

    // ---- settings of the job, from the loader
    wire [12*32-1:0] head;
    wire [8*32-1:0]  table_a;
    wire [8*32-1:0]  table_b;
    wire [8*16-1:0]  table_y;
    wire             job_start;
    wire             job_done;

    wire        stride2   = head[8];
    wire        adds      = head[9];
    wire [15:0] passes    = head[31:16];
    wire [15:0] row_words = head[32+:16];
    wire [15:0] in_rows   = head[48+:16];
    wire [15:0] groups    = head[64+:16];
    wire [15:0] out_rows  = head[80+:16];
    wire [15:0] channels  = head[96+:16];
    wire [15:0] phase     = head[112+:16];
    wire [15:0] pitch     = head[128+:16];
    wire [15:0] row_step  = head[144+:16];
    wire [7:0]  zero_in   = head[160+:8];
    wire [15:0] need_0    = head[208+:16];
    wire [15:0] base_0    = head[224+:16];
    wire [15:0] row_0     = head[240+:16];

    // ---- loader
    wire [1:0]       full;
    wire [1:0]       index_half;
    wire [2*8-1:0]   filters;
    wire [2*7-1:0]   leads;
    wire [2*16-1:0]  ends;
    wire             issued_last, freed, freed_half;
    reg              now;  // half of the pass that is issued
    wire             en;
    wire [WA:0]      index_at;
    wire [17:0]      index;
    reg  [WA:0]      weight_at_3;
    wire [8*P-1:0]   weight_4;
    wire [$clog2(2*P)-1:0] parameter_at;
    wire [61:0]      parameters;
    wire             den;

    kep_loader #(.P(P), .WD(WD)) loader (
        .clk(clk), .rst(rst),
        .s_cfg_data(s_cfg_data), .s_cfg_valid(s_cfg_valid), .s_cfg_ready(s_cfg_ready),
        .head(head), .table_a(table_a), .table_b(table_b), .table_y(table_y),
        .job_start(job_start), .job_done(job_done),
        .full(full), .index_half(index_half), .filters(filters), .leads(leads), .ends(ends),
        .issued_last(issued_last), .issued_half(now), .freed(freed), .freed_half(freed_half),
        .en(en), .index_at(index_at), .index(index), .weight_at(weight_at_3), .weight(weight_4),
        .den(den), .parameter_at(parameter_at), .parameters(parameters)
    );

    // ---- S0: which element of which group of pixels
    reg         active;
    reg  [15:0] slot, group, row, need, pass;
    reg  [15:0] group_column, group_at, row_at;
    reg  signed [15:0] row_y;
    wire [15:0] rows_loaded;

    wire [15:0] lead      = now ? {9'd0, leads[13:7]} : {9'd0, leads[6:0]};
    wire [15:0] end_slot  = now ? ends[31:16] : ends[15:0];
    wire        rows_here = rows_loaded >= need || rows_loaded == in_rows;
    wire        row_start = group == 0 && slot == 0;
    wire        go        = active && full[now] && (!row_start || rows_here);
    wire        group_end = go && slot == end_slot;
    wire        row_end   = group_end && group == groups - 1;
    wire        pass_end  = row_end && row == out_rows - 1;
    wire        job_end   = pass_end && pass == passes - 1;
    wire [WA-1:0] element = slot[WA-1:0] - lead[WA-1:0];

    assign issued_last = en && pass_end;
    assign index_at    = {now ? index_half[1] : index_half[0], element};

    always @(posedge clk) begin
        if (rst) begin
            active <= 1'b0;
            now    <= 1'b0;
        end else if (job_start) begin
            active <= 1'b1;
            now    <= 1'b0;
            {slot, group, row, pass, group_column, group_at} <= 96'd0;
            need   <= need_0;
            row_at <= base_0;
            row_y  <= row_0;
        end else if (en && go) begin
            slot <= group_end ? 16'd0 : slot + 16'd1;
            if (group_end) begin
                group        <= row_end ? 16'd0 : group + 16'd1;
                group_column <= row_end ? 16'd0 : group_column + Q[15:0];
                group_at     <= row_end ? 16'd0 : group_at + channels;
            end
            if (row_end) begin
                row    <= pass_end ? 16'd0 : row + 16'd1;
                need   <= pass_end ? need_0 : need + (stride2 ? 16'd2 : 16'd1);
                row_at <= pass_end ? base_0 : row_at + row_step;
                row_y  <= pass_end ? row_0 : row_y + (stride2 ? 16'sd2 : 16'sd1);
            end
            if (pass_end) begin
                now  <= !now;
                pass <= pass + 16'd1;
            end
            if (job_end) active <= 1'b0;
        end
    end

    // ---- S1: the element's channel and offsets; S2, S3: where its pixels lie
    reg         v1, v2, v3, v4, v5, v6;
    reg  [4:0]  f1, f2, f3, f4, f5, f6;  // first, last of the group; last of the pass, of the job; half
    reg  [WA:0] weight_at_1, weight_at_2;
    reg  [15:0] group_column_1, group_column_2, at_1;
    reg  signed [15:0] row_y_1;
    wire [15:0] channel_1 = {4'd0, index[11:0]};
    wire [2:0]  ky_1      = index[14:12];
    wire [2:0]  kx_1      = index[17:15];
    wire [25:0] a_1       = table_a[32*kx_1+:26];
    wire [31:0] b_1       = table_b[32*kx_1+:32];

    reg  [15:0] at_2, at_next_2, offset_2, limit_2, shift_2, y_2;
    reg  [4:0]  turn_2, inside_2;
    reg  [15:0] at_3, at_next_3, column_3, limit_3;
    reg  [4:0]  turn_3, turn_4;
    reg         row_valid_3;
    reg  [Q-1:0] next_3, next_2, valid_4;
    integer b, s;

    always @* begin
        for (b = 0; b < Q; b = b + 1) begin
            s = b - turn_2;
            if (s < 0) s = s + Q;
            next_2[b] = s + inside_2 >= Q;
        end
    end

    always @(posedge clk) begin
        if (rst) {v1, v2, v3, v4, v5, v6} <= 6'd0;
        else if (en) begin
            {v2, v3, v4, v5, v6} <= {v1, v2, v3, v4, v5};
            v1 <= go && slot >= lead;
        end
        if (en) begin
            f1 <= {now, job_end, pass_end, group_end, slot == lead};
            {f2, f3, f4, f5, f6} <= {f1, f2, f3, f4, f5};
            weight_at_1    <= {now, element};
            weight_at_2    <= weight_at_1;
            weight_at_3    <= weight_at_2;
            group_column_1 <= group_column;
            group_column_2 <= group_column_1;
            at_1           <= row_at + group_at;
            row_y_1        <= row_y;

            at_2      <= at_1 + channel_1;
            at_next_2 <= at_1 + channel_1 + channels;
            offset_2  <= a_1[15:0] + table_y[16*ky_1+:16];
            turn_2    <= a_1[20:16];
            inside_2  <= a_1[25:21];
            limit_2   <= b_1[15:0];
            shift_2   <= b_1[31:16];
            y_2       <= row_y_1 + {13'd0, ky_1};

            at_3        <= at_2 + offset_2;
            at_next_3   <= at_next_2 + offset_2;
            next_3      <= next_2;
            turn_3      <= turn_2;
            column_3    <= group_column_2 + shift_2;
            limit_3     <= limit_2;
            row_valid_3 <= !y_2[15] && y_2 < in_rows;
            turn_4      <= turn_3;
        end
    end

    // ---- S4: the line buffer is read; S5: pixels to their lanes, what lies outside is the zero point
    wire [8*Q-1:0] banks_4;
    kep_lines #(.Q(Q), .XD(XD)) lines (
        .clk(clk), .rst(rst), .start(job_start),
        .s_pix_data(s_pix_data), .s_pix_valid(s_pix_valid), .s_pix_ready(s_pix_ready),
        .stride2(stride2), .channels(channels), .row_words(row_words), .in_rows(in_rows), .pitch(pitch), .phase(phase),
        .rows_loaded(rows_loaded),
        .en(en), .at(at_3[XA-1:0]), .at_next(at_next_3[XA-1:0]), .next(next_3), .data(banks_4)
    );

    wire [16*Q-1:0] turned_4 = {banks_4, banks_4} >> {turn_4, 3'd0};
    reg  [8*Q-1:0]  pixels_5;
    reg  [8*P-1:0]  weight_5;
    integer q;
    always @(posedge clk)
        if (en) begin
            for (q = 0; q < Q; q = q + 1) begin
                valid_4[q]       <= row_valid_3 && column_of(column_3, q) < {1'b0, limit_3};
                pixels_5[8*q+:8] <= valid_4[q] ? turned_4[8*q+:8] : zero_in;
            end
            weight_5 <= weight_4;
        end

    // Column of a lane; what is left of the image is far right of it.
    function [16:0] column_of(input [15:0] first, input integer lane);
        reg [15:0] column;
        begin
            column    = first + lane[15:0];
            column_of = {column[15], column};
        end
    endfunction

    // ---- S6: products; S7: sums, in the lanes; behind them the finished sums, of which lane 0's leave first
    reg               complete;
    reg  [4:0]        f7;
    wire              ready, shift;
    wire [ACC*Q-1:0]  leaving;
    assign en = !(complete && !ready);

    genvar i, j;
    generate
        for (i = 0; i < P; i = i + 1) begin : filter
            wire [ACC*Q-1:0] waiting, above;
            if (i + 1 < P) assign above = filter[i+1].waiting;
            else           assign above = {ACC*Q{1'b0}};
            for (j = 0; j < Q; j = j + 1) begin : pixel
                kep_lane #(.ACC(ACC)) lane (
                    .clk(clk), .en(en), .weight(weight_5[8*i+:8]), .pixel(pixels_5[8*j+:8]), .add(v6), .first(f6[0]),
                    .take(complete && ready), .shift(shift),
                    .above(above[ACC*j+:ACC]), .waiting(waiting[ACC*j+:ACC])
                );
            end
        end
    endgenerate
    assign leaving = filter[0].waiting;

    always @(posedge clk)
        if (rst) complete <= 1'b0;
        else if (en) begin
            complete <= v6 && f6[1];
            f7       <= f6;
        end

    // ---- results
    wire [7:0] filters_7 = f7[4] ? filters[15:8] : filters[7:0];
    kep_drain #(.P(P), .Q(Q), .ACC(ACC)) drain (
        .clk(clk), .rst(rst), .adds(adds), .head(head[191:160]), .head_add(head[383:256]),
        .leaving(leaving), .shift(shift), .complete(complete), .pass_end(f7[2]), .job_end(f7[3]), .half(f7[4]), .filters(filters_7),
        .ready(ready), .freed(freed), .freed_half(freed_half),
        .den(den), .parameter_at(parameter_at), .parameters(parameters),
        .s_res_data(s_res_data), .s_res_valid(s_res_valid), .s_res_ready(s_res_ready),
        .m_out_data(m_out_data), .m_out_valid(m_out_valid), .m_out_last(m_out_last), .m_out_ready(m_out_ready)
    );
    assign job_done = m_out_valid && m_out_ready && m_out_last;
endmodule
