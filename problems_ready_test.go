package keyring

import (
	"errors"
	"testing"
	"time"
)

// TestServerThatIsNotReadySaysWhy, as something critical, after a while, whatever else is wrong; and in no second line if
// something that is wrong says it.
func TestServerThatIsNotReadySaysWhy(t *testing.T) {
	reasons := map[string]func(*overview){
		"it is on the way":        func(*overview) {},
		"no key":                  func(o *overview) { o.Ring.Keys[0].State = StateInactive },
		"not caught up":           func(o *overview) { o.CaughtUp = false },
		"the key is here no more": func(o *overview) { o.keystore.Missing = []KeyID{{15: 1}} },
		"the KEK is away":         withKEK(KEKUnavailable),
	}
	for name, reason := range reasons {
		for _, tt := range problemCases {
			for age, want := range map[time.Duration]bool{4 * time.Second: false, 6 * time.Second: true} {
				o := goodOverview()
				tt.wrong(&o)
				reason(&o)
				o.notReady, o.unready = errors.New("reason"), o.at.Add(-age)
				st := o.status()
				if critical := len(st.Problems) > 0 && st.Problems[0].Severity == SeverityCritical; st.Ready || want && !critical {
					t.Errorf("%s and %s, for %v: ready %t, %v", name, tt.name, age, st.Ready, st.Problems)
				}
			}
		}
		o := goodOverview()
		reason(&o)
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
