package plan_test

import (
	"testing"
	"time"

	"example.com/keyring/internal/plan"
)

func TestServerIsStuckWhenItGetsNoFurtherAndCould(t *testing.T) {
	type answer struct{ applied, committed uint64 }
	for name, tt := range map[string]struct {
		answers []answer
		stuck   bool
		behind  uint64
		since   int // the number of the answer
	}{
		"the first answer tells nothing": {answers: []answer{{1, 9}}, behind: 8},
		"idle":                           {answers: []answer{{9, 9}, {9, 9}}, since: 0},
		"it goes on":                     {answers: []answer{{1, 9}, {2, 9}}, behind: 7, since: 1},
		"what is new is no reason":       {answers: []answer{{9, 9}, {9, 12}}, behind: 3},
		"stuck":                          {answers: []answer{{9, 9}, {9, 12}, {9, 12}}, stuck: true, behind: 3},
		"stuck after it went on":         {answers: []answer{{1, 9}, {2, 12}, {2, 12}}, stuck: true, behind: 10, since: 1},
		"it goes on again":               {answers: []answer{{9, 12}, {9, 12}, {12, 12}}, since: 2},
		"it began again":                 {answers: []answer{{9, 12}, {0, 12}}, behind: 12, since: 1},
	} {
		var p plan.Progress
		for i, a := range tt.answers {
			p = p.Heard(a.applied, a.committed, start.Add(time.Duration(i)*time.Minute))
		}
		if p.Stuck != tt.stuck || p.Behind != tt.behind || !p.Since.Equal(start.Add(time.Duration(tt.since)*time.Minute)) {
			t.Errorf("%s: %+v", name, p)
		}
	}
}
