"""Networks in int8 on an FPGA: integers, streams, cycles, simulation, the target, and the folder to take along."""
