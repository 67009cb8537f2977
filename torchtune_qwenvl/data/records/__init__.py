"""From a source of conversations to the transform's input: records, messages, images and videos.

Files:

    sources         `open_source`: files, folders, globs, or what `datasets` loads
    records         records by number: the protocol, several sources as one, a slice
    json_records    records of JSON and JSONL files
    table_records   records of an Arrow table
    chat_reader     record -> sample: parses, finds media, transforms
    messages        record -> messages: its style, its columns, its checks
    styles/         the styles of records: other trainers' and ours
    columns         what becomes of columns that nobody reads
    text            text and JSON, or a bad sample
    parts           typed content parts, and the columns of images and videos
    tools           tools and calls in their several forms
    media           what a record names as image or video -> a checked path or bytes
    inline_media    data: URLs and base64
    urls            downloads by URL, from public addresses only
"""
