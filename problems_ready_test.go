package keyring

import (
	"errors"
	"slices"
	"testing"
	"time"

	"example.com/keyring/internal/meta"
)

// TestServerThatIsNotReadySaysWhy, as something critical, after a while, whatever else is wrong that is critical or not; and
// in no second line if something that is wrong says it.
func TestServerThatIsNotReadySaysWhy(t *testing.T) {
	says := func(kinds ...ProblemKind) []ProblemKind {
		return append(kinds, ProblemNotApplied, ProblemNewer, ProblemBehind, ProblemUnconfirmed, ProblemRemoved, ProblemIDTwice) // without these no server is ready
	}
	reasons := map[string]struct {
		wrong func(*overview)
		kinds []ProblemKind // that say it
	}{
		"it is on the way": {func(o *overview) { o.keystore.Missing, o.keks[0].Away = nil, "" }, says(ProblemNoLeader, ProblemRaftDisk)},
		"no key": {noActiveKey,
			says(ProblemFirstKey, ProblemNoNewKey, ProblemNoLeader, ProblemRaftDisk, ProblemKEKAway, ProblemKEKRefuses, ProblemKEKThrottled)},
		"not caught up": {func(o *overview) { o.CaughtUp = false }, []ProblemKind{ProblemBehind}},
		"the key is here no more": {func(o *overview) { o.keystore.Missing = []meta.KeyID{{15: 1}} }, says(ProblemKeyMissing, ProblemMoved, ProblemWrite, ProblemFileOwner,
			ProblemFileMode, ProblemNotAFile, ProblemNomad, ProblemOpening, ProblemKEKAway, ProblemKEKRefuses, ProblemKEKThrottled, ProblemKEKUnconfigured, ProblemKEKOther)},
		"the KEK is away": {withKEK(KEKUnavailable), []ProblemKind{ProblemKEKAway}},
	}
	for name, reason := range reasons {
		for _, tt := range problemCases {
			if tt.kind == ProblemInlineKEK {
				continue // it has no other KEK
			}
			for age, want := range map[time.Duration]bool{4 * time.Second: false, 6 * time.Second: true} {
				o := goodOverview()
				tt.wrong(&o)
				reason.wrong(&o)
				o.notReady, o.unready = errors.New("reason"), o.at.Add(-age)
				st := o.status()
				said := slices.ContainsFunc(st.Problems, func(p Problem) bool {
					return p.Severity == SeverityCritical && slices.Contains(reason.kinds, p.Kind)
				})
				if st.Ready || want && !said {
					t.Errorf("%s and %s, for %v: ready %t, %v", name, tt.name, age, st.Ready, st.Problems)
				}
			}
		}
		o := goodOverview()
		reason.wrong(&o)
		o.notReady, o.unready = errors.New("reason"), o.at.Add(-4*time.Second)
		if all := o.status().Problems; name == "it is on the way" && len(all) > 0 {
			t.Errorf("%s, for 4 seconds: %v", name, all)
		}
		o.unready = o.at.Add(-6 * time.Second)
		if all := o.status().Problems; len(all) != 1 || all[0].Advice == "" {
			t.Errorf("%s, for 6 seconds: %v", name, all)
		}
	}
}

func noActiveKey(o *overview) {
	o.Ring.Keys[0].State = meta.State(StateInactive)
	o.Ring = &meta.Ring{Keys: o.Ring.Keys, Servers: o.Ring.Servers, Removed: o.Ring.Removed, Backup: o.Ring.Backup}
}
