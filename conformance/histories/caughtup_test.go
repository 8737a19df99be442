package histories

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"time"
)

// A server that has just been started has the ring of its own log until it hears of a leader. What any
// server had applied before the start it must not deny: it shows no JWKS until it has caught up, and
// then one that has the key which was active.

// catching is how long the JWKS of a server that was started is looked at.
const catching = 2 * time.Second

// newest is the key that the last log entry of which a server has told has made active, or "".
func (w *witness) newest() (key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var last uint64
	for index, id := range w.active {
		if index >= last {
			last, key = index, id
		}
	}
	return key
}

// catchesUp looks at the JWKS of a server that was just started, until there is one. The key was active
// before the start, so it verifies tokens for a day; ten rotations later it could have been removed,
// which takes longer than this.
func (l *lab) catchesUp(h *host, key string) {
	l.t.Helper()
	if key == "" {
		return
	}
	for late := time.Now().Add(catching); time.Now().Before(late); <-time.After(pace) {
		var set struct {
			Keys []struct {
				Kid string `json:"kid"`
			} `json:"keys"`
		}
		if _, o := l.call(context.Background(), h, http.MethodGet, "/.well-known/jwks.json", nil, &set); o != done {
			continue // not yet, and it says so
		}
		var kids []string
		for _, k := range set.Keys {
			kids = append(kids, k.Kid)
		}
		if !slices.Contains(kids, key) {
			l.witness.note("%s was started when key %s had been active, and shows the JWKS %q", h.id, key, kids)
		}
		return
	}
}

// note adds a contradiction.
func (w *witness) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault(format, args...)
}

func TestWitnessKnowsTheNewestActiveKey(t *testing.T) {
	var w witness
	if key := w.newest(); key != "" {
		t.Errorf("%q before any", key)
	}
	w.saw(status{ID: "s1", Keys: []keyStatus{{"b", "active", 5}, {"a", "inactive", 5}}})
	w.saw(status{ID: "s2", Keys: []keyStatus{{"a", "active", 3}}})
	if key := w.newest(); key != "b" {
		t.Errorf("%q, want b", key)
	}
}
