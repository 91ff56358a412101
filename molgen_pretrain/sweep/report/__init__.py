"""The report of a sweep or of any runs: records are collected, then written as a page, as Markdown and as a picture.

`make.make_report` is the door. From the files of a run to what is drawn: `run`, `records`, `collect`, `settings`,
`curves`, `table`, `headline`, `tree`; then `html` (with `page/`), `html_tree`, `markdown`, `picture`, `palette`.
"""
