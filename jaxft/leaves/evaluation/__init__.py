"""What `lazy` is made of: views of leaves, the loop over a jaxpr, and the rules of primitives with a cheap form."""

from jaxft.leaves.evaluation import arithmetic, control, lookups, products, shapes

RULES = {**shapes.RULES, **arithmetic.RULES, **products.RULES, **lookups.RULES, **control.RULES}
