"""Watch a run: what is measured, logged and shown while it trains.

metrics: speed, waiting for data, memory, use of the device.
flops: floating-point operations of a step.
history: writes all metrics to metrics.jsonl.
validation_loss: the loss on held-out data.
validation_answers: asks questions of the validation set.
box_overlap: measures how well generated boxes cover the expected ones.
answer_display: shows the answers in the terminal, as a picture and in wandb.
sample_log: logs the first samples to wandb.
"""
