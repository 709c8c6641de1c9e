"""Private set intersection: which ids two or more parties have in common, and nothing else.

`program.align` is the party program, `program.compare` the keyless comparer's; `ids` makes items out of id columns.

- `cm20`, two parties: rows of the intersection.  Symmetric operations; w = 344 bits an id at 2^20.
- `ecdh`, two parties: rows or size of the intersection.  Three scalar multiplications an id; 32 to 75 bytes an id.
- `ring`, the same with a comparer, for three and more parties: rows or size of the intersection; rows of the union
  also for two.  As many multiplications an id as there are parties.

Who learns what stands at the head of each protocol's file.
"""
