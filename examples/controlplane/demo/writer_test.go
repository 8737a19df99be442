package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
)

// A load that ends by itself fails the demo, and the error says what the servers have answered.
func TestALoadThatFailsSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &demo{
			urls:    map[string]string{"s1": "nowhere://s1"},
			views:   map[string]status{"s1": {}},
			changed: make(chan struct{}),
		}
		w := newWriters(d, workers)
		err := w.overwrite(t.Context(), make(chan struct{}))
		if err == nil || strings.Count(err.Error(), "no server takes") != workers || !strings.Contains(err.Error(), `scheme "nowhere"`) {
			t.Errorf("%v, want the cause from each worker", err)
		}
		if n := w.puts(); n != 0 {
			t.Errorf("%d puts have failed and are counted", n)
		}
	})
}

func TestDemoWantsASecretForEachWriter(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), workers-1, &out); err == nil || out.Len() > 0 {
		t.Errorf("%v\n%s", err, &out)
	}
}
