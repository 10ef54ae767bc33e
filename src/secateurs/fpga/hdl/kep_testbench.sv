// Runs jobs through the engine and writes what comes out; for Verilator (--binary), Icarus, and what else reads SystemVerilog.
//
//   +cfg=FILE +pix=FILE +res=FILE  words of the streams in hexadecimal, one a line
//   +out=FILE                      words that came out
//   +jobs=N                        how many jobs there are; +cycles=FILE: the cycles of each, one a line
//   +stall=N +seed=N               in N of 256 cycles a stream waits, at random; 0: never
//   +limit=N                       give up after so many cycles without a word
`timescale 1ns / 1ps
module kep_testbench;
    parameter P = 4, Q = 4, XD = 512, WD = 128, ACC = 32;

    reg  clk = 1'b0, rst = 1'b1;
    reg  [8*P-1:0] cfg_data;
    reg  [8*Q-1:0] pix_data, res_data;
    wire [8*Q-1:0] out_data;
    reg  cfg_valid = 1'b0, pix_valid = 1'b0, res_valid = 1'b0, out_ready = 1'b0;
    wire cfg_ready, pix_ready, res_ready, out_valid, out_last;

    kep_engine #(.P(P), .Q(Q), .XD(XD), .WD(WD), .ACC(ACC)) engine (
        .clk(clk), .rst(rst),
        .s_cfg_data(cfg_data), .s_cfg_valid(cfg_valid), .s_cfg_ready(cfg_ready),
        .s_pix_data(pix_data), .s_pix_valid(pix_valid), .s_pix_ready(pix_ready),
        .s_res_data(res_data), .s_res_valid(res_valid), .s_res_ready(res_ready),
        .m_out_data(out_data), .m_out_valid(out_valid), .m_out_last(out_last), .m_out_ready(out_ready)
    );

    reg [8*256-1:0] name;
    integer cfg_file, pix_file, res_file, out_file, cycles_file;
    integer jobs, stall, seed, limit, done, idle, got;
    integer now, begun;
    reg     running, cfg_over, pix_over, res_over;

    always #5 clk = !clk;

    function integer opened(input integer unused);
        begin
            opened = unused;
            if (unused == 0) begin
                $display("error: a file cannot be opened");
                $finish;
            end
        end
    endfunction

    initial begin
        if (!$value$plusargs("jobs=%d", jobs)) jobs = 1;
        if (!$value$plusargs("stall=%d", stall)) stall = 0;
        if (!$value$plusargs("seed=%d", seed)) seed = 1;
        if (!$value$plusargs("limit=%d", limit)) limit = 1000000;
        got = $value$plusargs("cfg=%s", name);    cfg_file    = opened($fopen(name, "r"));
        got = $value$plusargs("pix=%s", name);    pix_file    = opened($fopen(name, "r"));
        got = $value$plusargs("res=%s", name);    res_file    = opened($fopen(name, "r"));
        got = $value$plusargs("out=%s", name);    out_file    = opened($fopen(name, "w"));
        got = $value$plusargs("cycles=%s", name); cycles_file = opened($fopen(name, "w"));
        {running, cfg_over, pix_over, res_over} = 4'd0;
        done = 0; idle = 0; now = 0; begun = 0;
    end

    // Words are offered after the clock's edge and stay until they are taken.
    function waits(input integer unused);
        begin
            seed  = seed ^ (seed << 13);
            seed  = seed ^ ((seed >> 17) & 32'h7fff);
            seed  = seed ^ (seed << 5);
            waits = (seed & 255) < stall;
        end
    endfunction

    reg took_cfg, took_pix, took_res, gave, gave_last;
    always @(posedge clk) begin
        took_cfg  = cfg_valid && cfg_ready;
        took_pix  = pix_valid && pix_ready;
        took_res  = res_valid && res_ready;
        gave      = out_valid && out_ready && !rst;
        gave_last = gave && out_last;
        now       = now + 1;
        if (took_cfg && !running) begin
            running = 1'b1;
            begun   = now;
        end
        if (gave) $fwrite(out_file, "%h\n", out_data);
        if (gave_last) begin
            $fwrite(cycles_file, "%0d\n", now - begun + 1);
            running = 1'b0;
            done    = done + 1;
        end
        idle = took_cfg || took_pix || took_res || gave ? 0 : idle + 1;
        if (done == jobs || idle > limit) begin
            if (done != jobs) $display("error: no word moved for %0d cycles, %0d of %0d jobs done", idle, done, jobs);
            $fclose(out_file);
            $fclose(cycles_file);
            $finish;
        end
    end

    always @(negedge clk) begin
        if (now > 2) rst = 1'b0;
        if (!rst) begin
            if (took_cfg) cfg_valid = 1'b0;
            if (took_pix) pix_valid = 1'b0;
            if (took_res) res_valid = 1'b0;
            if (!cfg_valid && !cfg_over && !waits(0)) begin
                cfg_valid = $fscanf(cfg_file, "%h", cfg_data) == 1;
                cfg_over  = !cfg_valid;
            end
            if (!pix_valid && !pix_over && !waits(0)) begin
                pix_valid = $fscanf(pix_file, "%h", pix_data) == 1;
                pix_over  = !pix_valid;
            end
            if (!res_valid && !res_over && !waits(0)) begin
                res_valid = $fscanf(res_file, "%h", res_data) == 1;
                res_over  = !res_valid;
            end
            out_ready = !waits(0);
        end
    end
endmodule
