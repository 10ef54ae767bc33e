// From sums to bytes, Q lanes, one filter a cycle: bias, multiplier and shift, rounded to the nearest with ties to even,
// zero point and bounds; then, where the job adds, both numbers weighed by 2^-24, rounded alike.
module kep_drain #(
    parameter P   = 16,
    parameter Q   = 8,
    parameter ACC = 32,
    parameter PA  = $clog2(2*P)
) (
    input  wire               clk,
    input  wire               rst,
    input  wire               adds,
    input  wire [31:0]        head,      // zero point, highest, lowest, (zero point of the input)
    input  wire [127:0]       head_add,  // multiplier of the result, of what is added; zero points; bounds
    input  wire [ACC*Q-1:0]   leaving,   // sums of the filter that leaves
    output wire               shift,     // it is taken, the next one comes
    input  wire               complete,
    input  wire               pass_end,
    input  wire               job_end,
    input  wire               half,
    input  wire [7:0]         filters,
    output wire               ready,
    output wire               freed,
    output wire               freed_half,
    output wire               den,
    output wire [PA-1:0]      parameter_at,
    input  wire [61:0]        parameters,
    input  wire [8*Q-1:0]     s_res_data,
    input  wire               s_res_valid,
    output wire               s_res_ready,
    output wire [8*Q-1:0]     m_out_data,
    output wire               m_out_valid,
    output wire               m_out_last,
    input  wire               m_out_ready
);
    // ---- the sums that wait, filter by filter
    reg  [7:0]          left, filter;
    reg                 of_pass_end, of_job_end, of_half;
    wire                some = left != 0;
    assign shift        = den && some;
    assign ready        = !some || (left == 1 && den);
    assign freed        = den && left == 1 && of_pass_end;
    assign freed_half   = of_half;
    assign parameter_at = of_half ? P[PA-1:0] + filter[PA-1:0] : filter[PA-1:0];

    always @(posedge clk)
        if (rst) left <= 8'd0;
        else if (complete && ready) begin
            left        <= filters;
            filter      <= 8'd0;
            of_pass_end <= pass_end;
            of_job_end  <= job_end;
            of_half     <= half;
        end else if (den && some) begin
            left   <= left - 8'd1;
            filter <= filter + 8'd1;
        end

    // ---- thirteen stages, all of them held while the result or what is added waits
    reg [12:1] valid;
    reg [12:1] last;
    wire       held = m_out_valid && !m_out_ready;
    assign den         = !held && !(valid[9] && adds && !s_res_valid);
    assign s_res_ready = valid[9] && adds && !held;
    reg        out_valid, out_last;
    assign m_out_valid = out_valid;
    assign m_out_last  = out_last;

    always @(posedge clk)
        if (rst) begin
            valid     <= 12'd0;
            out_valid <= 1'b0;
        end else if (den) begin
            valid     <= {valid[11:1], some};
            last      <= {last[11:1], of_job_end && left == 1};
            out_valid <= valid[12];
            out_last  <= last[12] && valid[12];
        end else if (m_out_ready) out_valid <= 1'b0;

    // The same of all lanes: multiplier, shift, and a mask of what is below the bit that is rounded by.
    reg  [23:0] multiplier_2;
    reg  [5:0]  shift_2, shift_3, shift_4, shift_5;
    reg  [57:0] mask_5;
    always @(posedge clk)
        if (den) begin
            multiplier_2 <= parameters[55:32];
            shift_2      <= parameters[61:56] - 6'd1;
            shift_3      <= shift_2;
            shift_4      <= shift_3;
            shift_5      <= shift_4;
            mask_5       <= ~({58{1'b1}} << shift_4);
        end

    genvar q;
    generate
        for (q = 0; q < Q; q = q + 1) begin : lane
            reg  signed [31:0] sum_1, sum_2;
            reg  [33:0]        low_3, low_4;
            reg  signed [32:0] high_3;
            reg  [23:0]        side_3;
            reg  signed [22:0] peak_3, peak_4;
            reg  signed [33:0] middle_4;
            reg  signed [57:0] product_5, shifted_6;
            reg                rest_6, rest_7;
            reg  signed [12:0] near_7;   // twice the result, cut off, within ±4095
            reg  signed [12:0] whole_8;
            reg  [7:0]         byte_9;
            wire [17:0]        multiplier_low = {1'b0, multiplier_2[16:0]};
            wire [6:0]         multiplier_high = multiplier_2[23:17];
            wire signed [14:0] sum_high = sum_2[31:17];
            wire [16:0]        sum_low  = sum_2[16:0];
            wire               fits     = &shifted_6[57:12] || !(|shifted_6[57:12]);
            wire signed [11:0] down     = near_7[12:1];
            wire signed [12:0] moved    = whole_8 + $signed({5'd0, head[31:24]});

            always @(posedge clk)
                if (den) begin
                    sum_1     <= $signed(leaving[ACC*q+:ACC]);
                    sum_2     <= sum_1 + $signed(parameters[31:0]);
                    low_3     <= $signed({1'b0, sum_low}) * $signed(multiplier_low);
                    high_3    <= sum_high * $signed(multiplier_low);
                    side_3    <= times7(sum_low, multiplier_high);
                    peak_3    <= signed_times7(sum_high, multiplier_high);
                    low_4     <= low_3;
                    peak_4    <= peak_3;
                    middle_4  <= high_3 + $signed({10'd0, side_3});
                    product_5 <= $signed({peak_4[22], peak_4, low_4}) + $signed({{7{middle_4[33]}}, middle_4, 17'd0});
                    shifted_6 <= product_5 >>> shift_5;
                    rest_6    <= |(product_5 & mask_5);
                    near_7    <= fits ? shifted_6[12:0] : shifted_6[57] ? -13'sd4095 : 13'sd4095;
                    rest_7    <= rest_6;
                    whole_8   <= {down[11], down} + {12'd0, near_7[0] && (rest_7 || near_7[1])};
                    byte_9    <= moved < $signed({5'd0, head[15:8]}) ? head[15:8]
                               : moved > $signed({5'd0, head[23:16]}) ? head[23:16] : moved[7:0];
                end

            // ---- the sum with what is added: each a 9-bit number by 27 bits, in logic
            wire signed [8:0]  own   = $signed({1'b0, byte_9}) - $signed({1'b0, head[31:24]});
            wire signed [8:0]  other = $signed({1'b0, s_res_data[8*q+:8]}) - $signed({1'b0, head_add[71:64]});
            reg  signed [36:0] own_a, own_b, own_c, other_a, other_b, other_c, low_11, high_11, both_12;
            reg  [7:0]         byte_10, byte_11, byte_12, byte_13;
            wire signed [12:0] added   = $signed(both_12[36:24]);
            wire signed [12:0] rounded = added + {12'd0, both_12[23] && ((|both_12[22:0]) || both_12[24])}
                                       + $signed({5'd0, head_add[79:72]});
            always @(posedge clk)
                if (den) begin
                    own_a   <= part(own[2:0], head_add[26:0]);
                    own_b   <= part(own[5:3], head_add[26:0]) <<< 3;
                    own_c   <= (part({1'b0, own[7:6]}, head_add[26:0]) <<< 6) - (own[8] ? $signed({2'd0, head_add[26:0], 8'd0}) : 37'sd0);
                    other_a <= part(other[2:0], head_add[58:32]);
                    other_b <= part(other[5:3], head_add[58:32]) <<< 3;
                    other_c <= (part({1'b0, other[7:6]}, head_add[58:32]) <<< 6) - (other[8] ? $signed({2'd0, head_add[58:32], 8'd0}) : 37'sd0);
                    low_11  <= own_a + own_b + other_a;
                    high_11 <= own_c + other_b + other_c;
                    both_12 <= low_11 + high_11;
                    byte_10 <= byte_9;
                    byte_11 <= byte_10;
                    byte_12 <= byte_11;
                    byte_13 <= !adds ? byte_12
                             : rounded < $signed({5'd0, head_add[103:96]}) ? head_add[103:96]
                             : rounded > $signed({5'd0, head_add[111:104]}) ? head_add[111:104] : rounded[7:0];
                end
            assign m_out_data[8*q+:8] = byte_13;
        end
    endgenerate

    // Products in logic: multipliers are scarce.
    function signed [36:0] part(input [2:0] value, input [26:0] by);
        part = $signed({10'd0, by & {27{value[0]}}}) + $signed({9'd0, by & {27{value[1]}}, 1'b0})
             + $signed({8'd0, by & {27{value[2]}}, 2'd0});
    endfunction

    function [23:0] times7(input [16:0] value, input [6:0] by);
        times7 = (({7'd0, value & {17{by[0]}}} + {6'd0, value & {17{by[1]}}, 1'd0})
                + ({5'd0, value & {17{by[2]}}, 2'd0} + {4'd0, value & {17{by[3]}}, 3'd0}))
               + (({3'd0, value & {17{by[4]}}, 4'd0} + {2'd0, value & {17{by[5]}}, 5'd0})
                + {1'd0, value & {17{by[6]}}, 6'd0});
    endfunction

    function signed [22:0] signed_times7(input signed [14:0] value, input [6:0] by);
        reg signed [22:0] wide;
        begin
            wide = value;
            signed_times7 = (((by[0] ? wide : 23'sd0) + (by[1] ? wide <<< 1 : 23'sd0))
                           + ((by[2] ? wide <<< 2 : 23'sd0) + (by[3] ? wide <<< 3 : 23'sd0)))
                          + (((by[4] ? wide <<< 4 : 23'sd0) + (by[5] ? wide <<< 5 : 23'sd0))
                           + (by[6] ? wide <<< 6 : 23'sd0));
        end
    endfunction
endmodule
