// Thole isolates labelled processes and containers from each other; see "thole --help".
package main

import (
	"context"
	"os"
)

func main() { os.Exit(execute(context.Background(), osWorld())) }
