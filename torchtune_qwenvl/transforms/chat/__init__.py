"""Conversations to tokens, masks and positions.

chat_format: renders a conversation as turns made of pieces; the data that differs between families.
pieces: the pieces of a turn.
video_format: how a video is written in tokens.
tools: how lists of tools and calls of tools are written.
template_check: compares our rendering with a checkpoint's Jinja template.
tokenizer: the BPE tokenizer.
turn_encoder: encodes turns as token ids and masks.
truncation: which turns fit into `max_seq_len`.
positions: three-axis positions for M-RoPE.
"""
