"""The helper and the word lists that the English training frames share."""

from __future__ import annotations

from collections.abc import Sequence

from examples.quickstart_data.schema import Frame, Text

MEN = ("Tom", "David", "Peter", "Samuel", "Robert", "Daniel", "George", "Omar", "Victor", "Henry")
MEN2 = ("Paul", "Mark", "James", "Alan", "Kevin", "Lucas", "Ivan", "Martin", "Simon", "Carlos")
WOMEN = ("Anna", "Maria", "Laura", "Emma", "Nadia", "Helen", "Sofia", "Julia", "Rosa", "Clara")
WOMEN2 = ("Susan", "Karen", "Linda", "Sarah", "Eva", "Olga", "Grace", "Alice", "Diana", "Ruth")
CITIES = ("Paris", "Berlin", "Rome", "Madrid", "Cairo", "Lisbon", "Dublin", "Athens", "Delhi", "Lima")
CITIES2 = ("London", "Vienna", "Prague", "Boston", "Nairobi", "Oslo", "Tokyo", "Warsaw", "Toronto", "Seoul")
DAYS = ("Monday", "Tuesday", "Wednesday")
DAYS2 = ("Thursday", "Friday", "Saturday", "Sunday")
SMALL = ("two", "three", "four", "five")
LARGE = ("eight", "nine", "ten", "eleven", "twelve")
HE_KIN = ("my brother", "my uncle", "our neighbour Frank", "my grandfather", "her husband", "his son", "my cousin Leo")
SHE_KIN = ("my sister", "my aunt", "our neighbour Joan", "my grandmother", "his wife", "her daughter", "my cousin Mia")


def en(
    name: str,
    relation: str,
    hypothesis: str,
    entailment: str | Sequence[str],
    neutral: str | Sequence[str],
    contradiction: str | Sequence[str],
    **slots: Sequence[str],
) -> Frame:
    """Return an English-only frame; a premise is one template or several."""

    def texts(templates: str | Sequence[str]) -> tuple[Text, ...]:
        return tuple({"en": text} for text in ([templates] if isinstance(templates, str) else templates))

    return Frame(
        name=f"train-{name}",
        relation=relation,
        hypothesis={"en": hypothesis},
        entailment=texts(entailment),
        neutral=texts(neutral),
        contradiction=texts(contradiction),
        slots={slot: texts(values) for slot, values in slots.items()},
    )
