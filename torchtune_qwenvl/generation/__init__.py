"""Text from images, videos and prompts: decoding, how tokens are chosen, and conversations."""

from torchtune_qwenvl.generation.conversation import Conversation
from torchtune_qwenvl.generation.decoding import generate, stream
from torchtune_qwenvl.generation.sampling import Sampling, choose, folder_sampling, processed

__all__ = ["Conversation", "Sampling", "choose", "folder_sampling", "generate", "processed", "stream"]
