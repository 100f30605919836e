package cgroupfs

import (
	"testing"

	"thole/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }
