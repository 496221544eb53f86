"""The trade-off bench: accuracy against bytes, Eyeline beside what a careful user would do by hand.

clip        the pictures of a video file as the camera gives them, and the cloud model's answers on them
baselines   B1 jpeg, B2 x264, B3 the edge model alone, B5 the camera's own packets
eyeline     the real edge path, its envelopes, and the real cloud path behind them, in one process
wire        what a message costs on the wire, to the byte
points      an operating point and its figures
curve       envelopes of curves, bytes at equal F1, BD-rate
report      tradeoff.json, table and plot
"""
