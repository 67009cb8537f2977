"""`tune-qwenvl chat`: a conversation in the terminal, with a tuned model and its base."""

import argparse

EPILOG = """\
examples:
  a published or a tuned model:
    tune-qwenvl chat outputs/qwen2_5_vl_3B/model
  an adapter, ours or PEFT's; its base model answers next to it:
    tune-qwenvl chat outputs/qwen2_5_vl_3B/adapter --compare
  a tuned model next to another one:
    tune-qwenvl chat outputs/qwen2_5_vl_3B/model --base /tmp/Qwen2.5-VL-3B-Instruct --compare
  questions from a file; the first error ends it:
    tune-qwenvl chat outputs/qwen2_5_vl_3B/model < questions.txt

Type a question, or a command; /help lists them. How tokens are chosen comes from the folder's
generation_config.json; temperature=0.7 and the like change it.
"""


class Chat:
    """Reads questions and commands, prints answers."""

    def __init__(self, subparsers) -> None:
        parser = subparsers.add_parser(
            "chat",
            description="Talk to a model about images and videos.",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add = parser.add_argument
        add("folder", metavar="DIR", help="a checkpoint, or an adapter")
        add("sampling", nargs="*", metavar="key=value", help="temperature, top_k, top_p, min_p, seed, ...")
        add("--base", metavar="DIR", help="the model to compare with; default: the adapter's base model")
        add("--compare", action="store_true", help="each question is answered by both")
        add("--system", metavar="TEXT", help="a system message")
        add("--max-new-tokens", type=int, default=512, metavar="N", help="of an answer; default: %(default)s")
        add("--max-pixels", type=int, metavar="N", help="per image; default: as the folder says")
        add("--fps", type=float, metavar="N", help="frames read per second of video")
        add("--dtype", choices=("bf16", "fp16", "fp32"), help="of the weights; default: the files'")
        add("--device", metavar="NAME", help="cpu, cuda, ...; default: cuda if there is one")
        parser.set_defaults(func=self._chat)

    def _chat(self, args: argparse.Namespace) -> None:
        import sys

        import torch

        from torchtune_qwenvl.cli.chat.session import ChatSession, Models, changed
        from torchtune_qwenvl.generation import Conversation, folder_sampling
        from torchtune_qwenvl.models import load_transform

        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        models = Models(args.folder, args.base, dtypes.get(args.dtype), device)
        transform = load_transform(models.start.checkpoint, max_pixels=args.max_pixels, fps=args.fps)
        sampling, ignored = folder_sampling(models.start.checkpoint)
        if ignored:
            print(f"generation_config.json: {', '.join(ignored)} is not followed", file=sys.stderr)
        talk = Conversation(transform, changed(sampling, args.sampling), args.max_new_tokens, args.system)
        session = ChatSession(talk, models, compare=args.compare)
        session.run(sys.stdin, typed=sys.stdin.isatty())
