from relay.sources import source_classes
from relay.sources.customerio import Customerio
from relay.sources.vero import Vero


def test_only_the_modules_of_sources_are_sources() -> None:
    assert source_classes() == {"customerio": Customerio, "vero": Vero}
