"""Pictures of runs and data, as PNG files: charts by matplotlib, pages of images and text by Pillow."""
