"""The styles of records: which columns hold the conversation, and how it is written in them.

Files:

    table       the styles, each with its columns and its reader; which one a record has
    turns       lists of turns: `messages` and `conversations`
    flat        columns with a question and an answer: qa, ms-swift's, Alpaca's, TRL's
    tags        `<image>` and `<video>` in a text
    weights     how much an answer counts in the loss
    oddities    what is odd about a conversation, but no error
"""
