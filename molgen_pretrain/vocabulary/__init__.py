"""Which tokens a tokenizer has: more of them for new tags, fewer where the data leave most of them unused.

`folder` reads a tokenizer and writes a changed one as an ordinary Hugging Face folder. `extend` adds tokens behind
the others. `compact` keeps the tokens that some text uses, with the merges that lead to them (`merges`); `compaction`
is the record of what was kept, by which weights move between the two vocabularies. `rows` says how large an
embedding goes with a tokenizer.
"""
