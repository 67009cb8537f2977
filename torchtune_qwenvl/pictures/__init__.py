"""Pictures of runs and data as PNG files: charts by matplotlib, pages of images and text by Pillow.

cards: pages of cards with images and text.
curves: the metrics of a run as curves.
lengths: lengths of samples and sizes of images.
style: colours, matplotlib's settings, saving a figure.
text: wrap and draw coloured text.
"""
