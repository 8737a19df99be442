package keyring_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// TestMetricsOfAServer: each that MetricInfos lists comes, with the label that it has there, and no other.
func TestMetricsOfAServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := keyringtest.NewFigures()
		const every = 30 * time.Second
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Metrics, cfg.MetricsEvery, cfg.Rotation.Every = s, every, -1
			cfg.Certificates = endsIn(cfg.ID, time.Now().Add(3*time.Hour))
		}})
		k := keyringtest.Ready(t, c).Keyring
		if _, err := k.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		const messages = 20_000
		for range messages {
			sealed, err := k.Encrypt(nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := k.Decrypt(sealed, nil); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour) // virtual
		gauges, counters := s.Get()
		for name, want := range map[string]float64{
			"keyring.keys": 2, "keyring.keys.missing": 0, "keyring.keys.underheld": 0, "keyring.keys.unbacked": 2,
			"keyring.problems.severity;severity=critical": 0, "keyring.problems.severity;severity=notice": 2,
			"keyring.jwks.keys": 2, "keyring.keks.failing": 0,
			"keyring.problems;kind=inline KEK": 1, "keyring.problems;kind=no backup": 1, "keyring.problems;kind=KEK away": 0,
		} {
			if got, ok := gauges[name]; !ok || got != want {
				t.Errorf("%s is %v, %t, want %v", name, got, ok, want)
			}
		}
		own, ca := gauges["keyring.certificate.left;certificate=own"], gauges["keyring.certificate.left;certificate=CA"]
		if own > 7200 || own < 7100 || ca != own+3600 {
			t.Errorf("%v s of the certificate are left, and %v of the CA's", own, ca)
		}
		if age := gauges["keyring.key.active.age"]; age < 3500 || age > 3700 {
			t.Errorf("the active key is %v seconds old", age)
		}
		for _, name := range []string{"seals", "opens"} {
			name = fmt.Sprintf("keyring.key.%s;key=%s", name, k.Keys()[0].ID)
			if n := counters[name]; n < messages/2 || n > messages*2 { // one in 256 stands for all
				t.Errorf("%s is %v, want about %d", name, n, messages)
			}
		}
		checkInfos(t, gauges, false)
		checkInfos(t, counters, true)
	})
}

// endsIn says that a server's own certificate ends, and that the CA's does an hour later.
func endsIn(id raft.ServerID, end time.Time) func() ([]keyring.Certificate, error) {
	return func() ([]keyring.Certificate, error) {
		own := keyring.Certificate{Server: id, NotBefore: end.Add(-4 * time.Hour), NotAfter: end}
		ca, other := own, own
		ca.CA, ca.NotAfter, other.Server = true, end.Add(time.Hour), "another"
		return []keyring.Certificate{other, own, ca}, nil
	}
}

// checkInfos holds what has come, which is nothing of a rekey, of backups by schedule, against MetricInfos.
func checkInfos(t *testing.T, got map[string]float64, counter bool) {
	t.Helper()
	listed := map[string]keyring.MetricInfo{}
	for _, info := range keyring.MetricInfos() {
		if info.Counter == counter && !strings.HasPrefix(info.Name, "keyring.rekey.") && info.Name != "keyring.backup.failures" {
			listed[info.Name] = info
		}
	}
	came := map[string]bool{}
	for s := range got {
		name, label, _ := strings.Cut(s, ";")
		label, _, _ = strings.Cut(label, "=")
		if info, is := listed[name]; !is || info.Label != label {
			t.Errorf("%s came, and MetricInfos has %+v", s, info)
		}
		came[name] = true
	}
	for name := range listed {
		if !came[name] {
			t.Errorf("%s never came", name)
		}
	}
}

// TestOperationsPageListsEveryMetric, as MetricInfos does.
func TestOperationsPageListsEveryMetric(t *testing.T) {
	table := "| metric | kind | unit | meaning |\n|---|---|---|---|\n"
	for _, info := range keyring.MetricInfos() {
		kind := "gauge"
		if info.Counter {
			kind = "counter"
		}
		if info.Label != "" {
			kind += ", by `" + info.Label + "`"
		}
		table += fmt.Sprintf("| `%s` | %s | %s | %s |\n", info.Name, kind, info.Unit, info.Help)
	}
	page, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), table) {
		t.Errorf("docs/operations.md does not have this table:\n%s", table)
	}
	for _, name := range regexp.MustCompile("`keyring\\.[a-z.]+`").FindAllString(string(page), -1) {
		if !strings.Contains(table, name) {
			t.Errorf("docs/operations.md has %s, which is no metric", name)
		}
	}
}

// TestUseIsCountedAcrossAFetch: a key that is read or fetched again counts from zero, and its counters grow by what
// comes then.
func TestUseIsCountedAcrossAFetch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := keyringtest.NewFigures()
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Metrics, cfg.MetricsEvery, cfg.Rotation.Every = s, time.Second, -1
		}})
		k := keyringtest.Ready(t, c).Keyring
		id := k.Keys()[0].ID
		total := 0
		for i, n := range []int{40_000, 20_000, 80_000} { // fewer, and more, than before
			for range n {
				if _, err := k.Encrypt(nil, nil); err != nil {
					t.Fatal(err)
				}
			}
			total += n
			time.Sleep(time.Minute) // virtual
			_, counters := s.Get()
			if got := counters["keyring.key.seals;key="+id.String()]; got < 0.7*float64(total) || got > 1.4*float64(total) { // one in 256 stands for all
				t.Errorf("%d times read: %v, want about %d", i+1, got, total)
			}
			if err := reread(k, id); err != nil {
				t.Fatal(err)
			}
			_, _ = k.Encrypt(nil, nil) // it notices
		}
	})
}

// TestClosedKeyringNotesNoEvents: nobody would take them, and they would pile up.
func TestClosedKeyringNotesNoEvents(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Audit = func(keyring.Event) {}
		}})
		s := keyringtest.Ready(t, c)
		if !keyring.IsAudited(s.FSM) {
			t.Error("the FSM of an open keyring notes no events")
		}
		if err := s.Keyring.Close(); err != nil {
			t.Fatal(err)
		}
		if keyring.IsAudited(s.FSM) {
			t.Error("after Close the FSM still notes events")
		}
	})
}
