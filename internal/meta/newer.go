package meta

// What of a key only a newer build can use: this one carries the key, and leaves it alone.

import (
	"fmt"
	"slices"
)

// algorithms are the signing algorithms that this build signs and verifies with, by their names in JOSE.
var algorithms = []string{"RS256", "ES256", "EdDSA"}

// KnowsAlgorithm reports whether this build signs and verifies with that signing algorithm.
func KnowsAlgorithm(name string) bool { return name == "" || slices.Contains(algorithms, name) }

// Newer says why only a newer build can use the key: it is of a signing algorithm or of a cipher suite that this build
// does not know. It is empty for a key that this build can use. Apply never asks, for all builds apply the same: this build
// neither holds such a key nor activates it nor uses it, and its metadata stays as it is.
func (n NewKey) Newer() string {
	switch {
	case !KnowsAlgorithm(n.Algorithm):
		return fmt.Sprintf("only a newer build knows its signing algorithm %.16q", n.Algorithm)
	case n.Suite != "":
		return fmt.Sprintf("only a newer build knows its cipher suite %.32q", n.Suite)
	}
	return ""
}

// Newer is NewKey.Newer.
func (k *Key) Newer() string { return k.New().Newer() }
