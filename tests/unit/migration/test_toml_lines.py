"""The line of every key, however it is spelled."""

from molgen_pretrain.migration.toml_lines import key_lines

# The comment on each line names the keys that stand on it.
TEXT = '''
title = "a = [b] # c"          #: title
"quo.ted" = 'x # y'            #: quo.ted
'single' = """                 #: single
not_a_key = 1
[not.a.table]
\\""" still in the text """"
raw = \'\'\'                   #: raw
also_not = "a key"
\'\'\'
training.steps = 5             #: training training.steps
"\\u0074wo" . b = 1979-05-27 07:32:00  #: two two.b
list = [                       #: list
    "a]", 'b[', # ] not_this = 1
    [1, 2], { deep = [3] },    #: list.deep
]

[optimizer]                    #: optimizer
lr=8e-4# no blank              #: optimizer.lr
  beta1   =   0.9              #: optimizer.beta1
inline = { a = 1, b.c = "}", d = { e = [1, 2] } }  #: optimizer.inline optimizer.inline.a optimizer.inline.b \
optimizer.inline.b.c optimizer.inline.d optimizer.inline.d.e

[ a . "b.c" ]                  #: a a.b.c
x = true                       #: a.b.c.x
[[many]]                       #: many
y = -inf                       #: many.y
[[many]]
z = 0x1F                       #: many.z
'''.replace("\\\noptimizer", "optimizer")


def test_every_spelling() -> None:
    expected = {}
    for number, line in enumerate(TEXT.splitlines(), start=1):
        for name in line.partition("#:")[2].split():
            expected.setdefault(name, number)
    assert {".".join(path): line for path, line in key_lines(TEXT).items()} == expected


def test_windows_line_ends_and_no_last_newline() -> None:
    assert key_lines("[a]\r\nx = 1 # no\r\n\r\ny = 'z'") == {("a",): 1, ("a", "x"): 2, ("a", "y"): 4}
    assert key_lines("") == {}
