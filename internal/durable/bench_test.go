package durable_test

import (
	"fmt"
	"testing"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/keyringtest"
)

// BenchmarkWrite measures Write of files of 2 KB: of one against what two syncs and a rename
// cost, of 64 against the cheapest of several ways.
func BenchmarkWrite(b *testing.B) {
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			path := b.TempDir()
			fsys, err := durable.OpenDir(path)
			if err != nil {
				b.Fatal(err)
			}
			d := durable.New(fsys)
			defer d.Close()
			round := 0
			keyringtest.VersusByHand(b, path, func() (files []durable.Named, _ func() error) {
				round++
				for i := range n {
					files = append(files, durable.Named{Name: fmt.Sprintf("key%d-%d", round, i), Data: make([]byte, 2112)})
				}
				return files, func() error { return write(d, files...) }
			})
		})
	}
}
