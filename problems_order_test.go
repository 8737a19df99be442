package keyring

import (
	"errors"
	"slices"
	"testing"
	"time"

	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
)

// TestACauseComesBeforeWhatFollowsFromIt: whoever reads Status begins with the first problem.
func TestACauseComesBeforeWhatFollowsFromIt(t *testing.T) {
	silent := func(o *overview) { o.raft.silence, o.leader = time.Hour, "" }
	behind := func(o *overview) { o.CaughtUp = false }
	critical := func(kind ProblemKind) func(*overview) {
		return func(o *overview) {
			o.host = append(o.host, Problem{Kind: kind, Severity: SeverityCritical, Detail: "x"})
		}
	}
	lacks := func(o *overview) {
		o.keystore = keystore.Report{Missing: []meta.KeyID{{15: 1}}}
		o.fetching.Lacking = map[meta.KeyID]mono.Time{{15: 1}: o.at.Add(-time.Hour)}
	}
	for _, tt := range []struct {
		name  string
		wrong []func(*overview)
		want  []ProblemKind
	}{
		{"its log is not written", []func(*overview){silent, critical(ProblemRaftDisk)}, []ProblemKind{ProblemRaftDisk, ProblemNoLeader}},
		{"it was removed", []func(*overview){silent, behind, critical(ProblemRemoved)}, []ProblemKind{ProblemRemoved, ProblemNoLeader, ProblemBehind}},
		{"another server has its ID", []func(*overview){silent, behind, critical(ProblemIDTwice)}, []ProblemKind{ProblemIDTwice, ProblemBehind}},
		{"others refuse its certificate", []func(*overview){silent, behind, critical(ProblemCertificate)}, []ProblemKind{ProblemCertificate, ProblemNoLeader, ProblemBehind}},
		{"its log has what a newer build wrote", []func(*overview){behind, critical(ProblemNewer)}, []ProblemKind{ProblemNewer, ProblemBehind}},
		{"its KEK does not answer", []func(*overview){lacks, withKEK(KEKUnavailable)}, []ProblemKind{ProblemKEKAway, ProblemKeyMissing}},
		{"its KEK refuses", []func(*overview){lacks, withKEK(KEKRefuses)}, []ProblemKind{ProblemKEKRefuses, ProblemKeyMissing}},
		{"its keys can't be written", []func(*overview){lacks, critical(ProblemWrite)}, []ProblemKind{ProblemWrite, ProblemKeyMissing}},
	} {
		o := goodOverview()
		for _, wrong := range tt.wrong {
			wrong(&o)
		}
		o.notReady, o.unready = errors.New("x"), o.at.Add(-time.Hour)
		var got []ProblemKind
		for _, p := range o.status().Problems {
			got = append(got, p.Kind)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
