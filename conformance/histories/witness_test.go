package histories

import (
	"fmt"
	"sync"
	"testing"
)

// witness remembers what all servers have ever said of keys, and looks for what contradicts: I2, and
// what can be seen of I7 from outside.
type witness struct {
	mu     sync.Mutex        // guards below
	states map[change]string // which a log entry has given to a key
	active map[uint64]string // the key that an entry has made active, or has changed while it was
	faults []string
}

// change is a log entry that changed a key.
type change struct {
	key   string
	index uint64
}

// saw takes note of a status.
func (w *witness) saw(s status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.states == nil {
		w.states, w.active = map[change]string{}, map[uint64]string{}
	}
	active := ""
	for _, k := range s.Keys {
		at := change{k.ID, k.Index}
		if before, known := w.states[at]; known && before != k.State {
			w.fault("I7: key %s as of index %d is %s, and %s on %s", k.ID, k.Index, before, k.State, s.ID)
		}
		w.states[at] = k.State
		if k.State != "active" {
			continue
		}
		if active != "" {
			w.fault("I2: on %s both %s and %s are active", s.ID, active, k.ID)
		}
		active = k.ID
		if before, known := w.active[k.Index]; known && before != k.ID {
			w.fault("I2: as of index %d %s is active, and %s on %s", k.Index, before, k.ID, s.ID)
		}
		w.active[k.Index] = k.ID
	}
}

func (w *witness) fault(format string, args ...any) {
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

// contradictions are those that were seen.
func (w *witness) contradictions() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.faults
}

func TestWitnessSeesContradictions(t *testing.T) {
	key := func(id, state string, index uint64) keyStatus { return keyStatus{id, state, index} }
	for name, test := range map[string]struct {
		seen []status
		bad  int
	}{
		"a rotation": {[]status{
			{ID: "s1", Keys: []keyStatus{key("b", "prepublished", 4), key("a", "active", 3)}},
			{ID: "s2", Keys: []keyStatus{key("b", "active", 5), key("a", "inactive", 5)}},
			{ID: "s1", Keys: []keyStatus{key("b", "prepublished", 4), key("a", "active", 3)}},
		}, 0},
		"two at once":       {[]status{{ID: "s1", Keys: []keyStatus{key("b", "active", 5), key("a", "active", 3)}}}, 1},
		"two at one index":  {[]status{{ID: "s1", Keys: []keyStatus{key("b", "active", 5)}}, {ID: "s2", Keys: []keyStatus{key("a", "active", 5)}}}, 1},
		"two states of one": {[]status{{ID: "s1", Keys: []keyStatus{key("b", "active", 5)}}, {ID: "s2", Keys: []keyStatus{key("b", "inactive", 5)}}}, 1},
	} {
		var w witness
		for _, s := range test.seen {
			w.saw(s)
		}
		if got := w.contradictions(); len(got) != test.bad {
			t.Errorf("%s: %q, want %d", name, got, test.bad)
		}
	}
}
