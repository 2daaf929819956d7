"""The systems that judge the suite: bad ones that it must reject, good ones that it must accept."""
