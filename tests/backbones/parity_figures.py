"""Print the differences from torch transformers: `python -m tests.backbones.parity_figures`.

For each stored fixture (small models of odd sizes, outputs of torch in float64) the largest
difference over the largest magnitude, of label scores, prompt gradient and neurons in float32; the
worst fixture of each family is printed. The tests allow 1e-4.
"""

import jax

from tests.helpers.golden import FIXTURES, answers_and_gradient, difference, load_golden

KINDS = ("logits", "prompt_gradient", "neurons")
# Compiled as users compile it, unlike in the tests.
learn = jax.jit(answers_and_gradient, static_argnums=0)


def measure(name: str) -> tuple[str, dict[str, float]]:
    golden = load_golden(name)
    labels = golden.input("label_ids"), golden.input("labels")
    found = learn(golden.module(), golden.params, golden.batch, *labels)
    stored = {**golden.stored, "neurons": golden.at_answer(golden.stored["neurons"])}
    found["neurons"] = found["answer_neurons"]
    return golden.family.name, {kind: difference(found[kind], stored[kind]) for kind in KINDS}


def main() -> None:
    worst: dict[str, dict[str, float]] = {}
    for folder in sorted(FIXTURES.iterdir()):
        family, found = measure(folder.name)
        known = worst.setdefault(family, dict.fromkeys(KINDS, 0.0) | {"fixtures": 0})
        known |= {kind: max(known[kind], found[kind]) for kind in KINDS}
        known["fixtures"] += 1
    for family, found in worst.items():
        figures = ", ".join(f"{kind} {found[kind]:.1e}" for kind in KINDS)
        print(f"{family} ({found['fixtures']} fixtures): {figures}")


if __name__ == "__main__":
    main()
