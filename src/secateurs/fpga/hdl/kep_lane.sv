// One pair of lanes: a multiplier, its sum, and the finished sum that waits to leave.
module kep_lane #(
    parameter ACC = 32
) (
    input  wire           clk,
    input  wire           en,
    input  wire [7:0]     weight,
    input  wire [7:0]     pixel,
    input  wire           add,    // the product is one of an element
    input  wire           first,  // of its group
    input  wire           take,   // the sum is finished, and what waited is away
    input  wire           shift,
    input  wire [ACC-1:0] above,
    output reg  [ACC-1:0] waiting
);
    reg signed [16:0]    product;
    reg signed [ACC-1:0] sum;
    always @(posedge clk) begin
        if (en) begin
            product <= $signed(weight) * $signed({1'b0, pixel});
            if (add) sum <= (first ? {ACC{1'b0}} : sum) + {{(ACC-17){product[16]}}, product};
        end
        if (take) waiting <= sum;
        else if (shift) waiting <= above;
    end
endmodule
