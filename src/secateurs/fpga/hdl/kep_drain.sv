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

    // ---- ten stages, all of them held while the result or what is added waits
    reg [10:1] valid;
    reg [10:1] last;
    wire       held = m_out_valid && !m_out_ready;
    assign den         = !held && !(valid[8] && adds && !s_res_valid);
    assign s_res_ready = valid[8] && adds && !held;
    reg        out_valid, out_last;
    assign m_out_valid = out_valid;
    assign m_out_last  = out_last;

    always @(posedge clk)
        if (rst) begin
            valid     <= 10'd0;
            out_valid <= 1'b0;
        end else if (den) begin
            valid     <= {valid[9:1], some};
            last      <= {last[9:1], of_job_end && left == 1};
            out_valid <= valid[10];
            out_last  <= last[10] && valid[10];
        end else if (m_out_ready) out_valid <= 1'b0;

    reg  [23:0] multiplier_2;
    reg  [5:0]  shift_2, shift_3, shift_4, shift_5;
    always @(posedge clk)
        if (den) begin
            multiplier_2 <= parameters[55:32];
            shift_2      <= parameters[61:56];
            shift_3      <= shift_2;
            shift_4      <= shift_3;
            shift_5      <= shift_4;
        end

    genvar q;
    generate
        for (q = 0; q < Q; q = q + 1) begin : lane
            reg  signed [31:0] sum_1, sum_2;
            reg  [33:0]        low_3;
            reg  signed [32:0] high_3;
            reg  [23:0]        side_3;
            reg  signed [22:0] peak_3, peak_4;
            reg  [33:0]        low_4;
            reg  signed [33:0] middle_4;
            reg  signed [57:0] product_5;
            reg  signed [12:0] near_6;   // twice the result, cut off, within ±4095
            reg                rest_6;
            reg  signed [12:0] whole_7;
            reg  [7:0]         byte_8;
            wire [17:0]        multiplier_low = {1'b0, multiplier_2[16:0]};

            // What multiplies by seven bits is left to logic: multipliers are scarce.
            wire signed [14:0] sum_high = sum_2[31:17];
            wire [16:0]        sum_low  = sum_2[16:0];
            reg  [23:0]        side;
            reg  signed [22:0] peak;
            integer            k;
            always @* begin
                side = 24'd0;
                peak   = 23'sd0;
                for (k = 0; k < 7; k = k + 1)
                    if (multiplier_2[17+k]) begin
                        side = side + ({7'd0, sum_low} << k);
                        peak   = peak + ($signed({{8{sum_high[14]}}, sum_high}) <<< k);
                    end
            end

            wire signed [57:0] shifted = product_5 >>> (shift_5 - 6'd1);
            wire               fits    = &shifted[57:12] || !(|shifted[57:12]);
            wire signed [11:0] down    = near_6[12:1];
            wire signed [12:0] moved   = whole_7 + $signed({5'd0, head[31:24]});

            always @(posedge clk)
                if (den) begin
                    sum_1     <= $signed(leaving[ACC*q+:ACC]);
                    sum_2     <= sum_1 + $signed(parameters[31:0]);
                    low_3     <= $signed({1'b0, sum_low}) * $signed(multiplier_low);
                    high_3    <= sum_high * $signed(multiplier_low);
                    side_3   <= side;
                    peak_3     <= peak;
                    low_4     <= low_3;
                    peak_4     <= peak_3;
                    middle_4  <= high_3 + $signed({10'd0, side_3});
                    product_5 <= $signed({peak_4[22], peak_4, low_4}) + $signed({{7{middle_4[33]}}, middle_4, 17'd0});
                    near_6    <= fits ? shifted[12:0] : shifted[57] ? -13'sd4095 : 13'sd4095;
                    rest_6    <= |(product_5 & ~({58{1'b1}} << (shift_5 - 6'd1)));
                    whole_7   <= {down[11], down} + {12'd0, near_6[0] && (rest_6 || near_6[1])};
                    byte_8    <= moved < $signed({5'd0, head[15:8]}) ? head[15:8]
                               : moved > $signed({5'd0, head[23:16]}) ? head[23:16] : moved[7:0];
                end

            // ---- the sum with what is added
            wire signed [8:0]  own   = $signed({1'b0, byte_8}) - $signed({1'b0, head[31:24]});
            wire signed [8:0]  other = $signed({1'b0, s_res_data[8*q+:8]}) - $signed({1'b0, head_add[71:64]});
            reg  signed [36:0] own_9, other_9, both_10;
            reg  [7:0]         byte_9, byte_10, byte_11;
            wire signed [12:0] added   = $signed(both_10[36:24]);
            wire signed [12:0] rounded = added + {12'd0, both_10[23] && ((|both_10[22:0]) || both_10[24])}
                                       + $signed({5'd0, head_add[79:72]});
            always @(posedge clk)
                if (den) begin
                    own_9   <= weighed(own, head_add[26:0]);
                    other_9 <= weighed(other, head_add[58:32]);
                    both_10 <= own_9 + other_9;
                    byte_9  <= byte_8;
                    byte_10 <= byte_9;
                    byte_11 <= !adds ? byte_10
                             : rounded < $signed({5'd0, head_add[103:96]}) ? head_add[103:96]
                             : rounded > $signed({5'd0, head_add[111:104]}) ? head_add[111:104] : rounded[7:0];
                end
            assign m_out_data[8*q+:8] = byte_11;
        end
    endgenerate

    // A product in logic: a 9-bit number by 27 bits without a sign.
    function signed [36:0] weighed(input signed [8:0] value, input [26:0] by);
        integer k;
        reg signed [36:0] total;
        begin
            total = value[8] ? -$signed({2'd0, by, 8'd0}) : 37'sd0;
            for (k = 0; k < 8; k = k + 1)
                if (value[k]) total = total + $signed({10'd0, by} << k);
            weighed = total;
        end
    endfunction
endmodule
