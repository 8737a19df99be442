package meta_test

import (
	"fmt"
	"strings"
	"testing"

	"example.com/keyring/internal/meta"
)

// TestStepsOfAStory: what is told of each entry of a story with all there is.
func TestStepsOfAStory(t *testing.T) {
	h := begin(t)
	story := []struct {
		do   func()
		want string
	}{
		{func() { h.prepublish(1) }, "added 1"},
		{func() { h.hold(1, "a", "b") }, ""},
		{func() { h.do(activate(1, "abc", "ab")) }, "activated 1"},
		{func() { h.do(adopt(7, true)) }, "adopted 7"},
		{func() { h.do(adopt(7, false)) }, "tokens admitted 7"},
		{func() { h.prepublish(2, full, revoke(1)) }, "added 2"},
		{func() { h.hold(2, "a", "b") }, ""},
		{func() { h.do(activate(2, "abc", "ab")) }, "retired 1, revoked 1, rekeying 1, rekeying 7, activated 2"},
		{func() { h.do(meta.Command{Rekey: &meta.Rekey{ID: id(7), Remove: true}}) }, "remove asked 7"},
		{func() { h.do(meta.Command{Clean: &meta.Clean{ID: id(7)}}) }, ""},
		{func() { h.deprecate(7) }, "deprecated 7"},
		{func() { h.do(remove(7, meta.StateDeprecated, false)) }, "removed 7"},
		{func() { h.do(remove(1, meta.StateRekeying, true)) }, "removed 1"},
		{func() { h.prepublish(3) }, "added 3"},
		{func() { h.do(remove(3, meta.StatePrepublished, false)) }, "removed 3"},
		{func() { h.prepublish(4); h.prepublish(5) }, "added 4, added 5"},
		{func() { h.do(remove(4, meta.StatePrepublished, false), remove(5, meta.StatePrepublished, false)) }, "removed 4, removed 5"},
		{func() { h.do(backup(7)) }, "backup"},
		{func() { h.do(meta.Command{Forget: &meta.Forget{Servers: []string{"b"}}}) }, ""},
	}
	for i, s := range story {
		before := h.ring
		s.do()
		var got []string
		for _, step := range meta.Steps(before, h.ring) {
			line := string(step.Kind)
			if step.Key != (meta.KeyID{}) {
				line += fmt.Sprint(" ", number(step.Key))
			}
			got = append(got, line)
		}
		if got := strings.Join(got, ", "); got != s.want {
			t.Errorf("%d: %q, want %q", i, got, s.want)
		}
	}
}
