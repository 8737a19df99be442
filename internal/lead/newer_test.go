package lead

import (
	"testing"

	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/go-hclog"
)

// TestOrphansOfNewerBuildsAreNotAdopted by a leader that can't use them; the others of the same server are.
func TestOrphansOfNewerBuildsAreNotAdopted(t *testing.T) {
	l := &Leader{Server: &local.Server{}}
	l.Logger = hclog.NewNullLogger()
	got := l.usable("b", []meta.NewKey{
		{ID: meta.KeyID{1}, Algorithm: "ML-DSA-65"}, {ID: meta.KeyID{2}, Algorithm: "EdDSA"}, {ID: meta.KeyID{3}, Algorithm: "EdDSA", Suite: "some-suite"},
	})
	if len(got) != 1 || got[0].ID != (meta.KeyID{2}) {
		t.Errorf("adopted: %v", got)
	}
}
