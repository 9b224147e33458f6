import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.contracts")
# A machine shared with others stalls now and then: how long an example takes says nothing.
settings.register_profile("relay", deadline=None)
settings.load_profile("relay")
