package links

import (
	"testing"
	"time"

	"thole/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second
