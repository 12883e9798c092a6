"""The console script with a chief that soon thinks a silent worker lost: for tests."""

from tfft.bin import __main__ as console
from tfft.tuning import service

service.LOST, service.BEAT = 8.0, 1.0

if __name__ == "__main__":
    console.main()
