package bench

import (
	"os"
	"testing"

	"thole/internal/nstest"
)

func TestMain(m *testing.M) {
	if len(os.Args) >= 3 && os.Args[1] == roleFlag {
		playRole(os.Args[2])
	}
	nstest.Main(m)
}
