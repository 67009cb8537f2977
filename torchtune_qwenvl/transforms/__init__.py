"""Transforms turn conversations with images and videos into a model's input: tokens, positions, patches.

vision_language: the transform of a whole sample, a torchtune ModelTokenizer and Transform.
media_planner: plans the images and videos of a conversation from their headers.
processor_folder: reads the tokenizer, template and processor files of a checkpoint folder.
size: the size of a sample in tokens and patches.
errors: what a transform raises for a bad sample.
chat/: conversations to tokens, masks and positions.
images/: images to patches.
videos/: videos to patches.
"""
