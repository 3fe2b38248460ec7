"""Defences of explanations: other maps of the same model (`softplus`, `tangent`), other trainings of a model that is
explained as ever (`hessian`, `alignment`). `foolbench experiment defences` attacks each of them through itself."""
