"""Mutants that cannot be told from the kernel: (file, part of the line and the next, what, why).

`what` is a regular expression for the mutation. A mutant belongs here only with a proof that no
input and no order of the threads can give other results.
"""

EXCLUSIONS = [
    (
        "cross_entropy.cu",
        "left < 0 ? 0 : left < room() ? left : room()",
        "off by one",
        "at the limit both branches give the same: 0 where nothing is left, room() where so many "
        "are",
    ),
    (
        "cross_entropy_finish.h",
        "const bool smooth = rows.label_smoothing > 0;",
        "",
        "without smoothing the sums are multiplied by a `uniform` of 0, or not looked at, whatever "
        "finite numbers they are: the number of classes, 0 or sums of weights that are finite",
    ),
    (
        "cross_entropy_finish.h",
        "rows.z_loss > 0 ? lse_of(",
        "",
        "only saves time: it is multiplied by a z_loss of 0 in product(), which gives 0 whatever "
        "the other factor is",
    ),
    (
        "cross_entropy_slice.h",
        "pairs.offset(group) < pairs.of_warp",
        "",
        "only saves time: a group that nobody has is loaded as -inf and not stored; it adds 0 to "
        "all sums but the number of largest logits of a row without any, which nobody looks at",
    ),
    (
        "cross_entropy_stage.h",
        "count < 0 ? 0 : count < most ? count : most",
        "count < 0",
        "of a negative number of tiles the loops visit none, as of 0",
    ),
    (
        "cross_entropy_stage.h",
        "i < tiles() * RowShape::kTile;",
        "i < tiles\\(\\)",
        "one more masked element lies within the word more that the room has, whatever the row's "
        "alignment, and nobody reads it",
    ),
    (
        "cross_entropy_short.cu",
        "if (fault || first >= rows.rows)",
        "first >=",
        "only saves time: all lanes have rows past the end, which are not valid, so nothing is "
        "loaded, summed or stored, and clear_rows passes them over",
    ),
    (
        "cross_entropy_short.cu",
        "if (!own.has(r)) continue; const float own_largest",
        "no check",
        "only saves time: registers without a row are summed, for a lane that has none to scale",
    ),
    (
        "decide.cu",
        "first < groups; first += kThreads",
        "off by one",
        "only saves time: in one more round no thread has a chunk and the first adds no group",
    ),
    (
        "decide.cu",
        "if (beyond != kNowhere) return;",
        "no check",
        "only saves time: nobody reads the scalars of a skipped step, the next one writes them all",
    ),
    (
        "elementwise.cu",
        "if (begin >= size) return;",
        "",
        "only saves time: what follows asks for each element, or for the last of four",
    ),
    (
        "elementwise.cu",
        "if (kWide && begin >= 0",
        "begin >= 0, off by one",
        "the first four elements are taken one by one, with the same words",
    ),
    (
        "elementwise.cu",
        "begin < rows; begin += kStretch",
        "off by one",
        "only saves time: one more stretch has a count of 0",
    ),
    (
        "elementwise.cu",
        "if (own && first + k < count) shared",
        "first \\+ k < count",
        "only saves time: first + k < kStretch always, and rows from count on are not added",
    ),
]
