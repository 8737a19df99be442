package backup_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/backup/backuptest"
	"example.com/keyring/internal/bounded/boundedtest"
	"example.com/keyring/internal/meta"
)

// TestLyingManifestCostsLittle: what is long, or has many elements that are none, is left early.
func TestLyingManifestCostsLittle(t *testing.T) {
	_, m, _ := backuptest.Small(t)
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	good := string(b)
	if got, err := backup.DecodeManifest(strings.NewReader(good)); err != nil || len(got.Keys) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	wantRefused(t, good, m.Keys[0])
	many := func(what string) string { return strings.Repeat(what+",", 8<<20/len(what)) + what }
	key := `{"ID":"%s","State":"active","Check":"` + strings.Repeat("1", 64) + `"}`
	before, _, _ := strings.Cut(good, `"Keys":[`)
	raftOf := func(what string) string {
		return before[:strings.Index(before, `"Raft":`)] + `"Raft":` + what + `,"Keys":[]}`
	}
	for name, lie := range map[string]string{
		"empty keys":        before + `"Keys":[` + many("{}") + `]}`,
		"nulls for keys":    before + `"Keys":[` + many("null") + `]}`,
		"the same key":      before + `"Keys":[` + many(fmt.Sprintf(key, m.Keys[0].ID)) + `]}`,
		"one long key":      before + `"Keys":[{"ID":"` + strings.Repeat("1", 8<<20) + `"}]}`,
		"many servers":      raftOf(`{"Configuration":{"Servers":[` + many("{}") + `]}}`),
		"a long list":       raftOf(`{"Configuration":{"Servers":[` + strings.Repeat(`{},`, 300_000) + `{}]}}`),
		"a member again":    raftOf(`{` + strings.Repeat(`"Index":1,`, 100_000) + `"Index":1}`),
		"a long format":     `{"Format":"` + strings.Repeat("a", 8<<20) + `"}`,
		"a long name":       `{"` + strings.Repeat("a", 8<<20) + `":1}`,
		"nothing but space": strings.Repeat(" ", 8<<20),
		"space for a key":   before + `"Keys":[` + strings.Repeat("\n", 8<<20),
		"space at the end":  good + strings.Repeat(" ", 8<<20),
		"deep":              raftOf(strings.Repeat("[", 900_000) + strings.Repeat("]", 900_000)),
	} {
		boundedtest.Memory(t, 0, 8<<20, 0, func() {
			if got, err := backup.DecodeManifest(strings.NewReader(lie)); err == nil {
				t.Errorf("%s: %d keys", name, len(got.Keys))
			}
		})
	}
	var keys strings.Builder
	for i := range 50_000 {
		fmt.Fprintf(&keys, key+",", meta.KeyID{1, byte(i >> 16), byte(i >> 8), byte(i)})
	}
	long := before + `"Keys":[` + strings.TrimSuffix(keys.String(), ",") + `]}`
	boundedtest.Memory(t, len(long), 1<<20, 16, func() { // most of it is garbage at once
		if got, err := backup.DecodeManifest(strings.NewReader(long)); err != nil || len(got.Keys) != 50_000 {
			t.Errorf("%d keys, %v", len(got.Keys), err)
		}
	})
}

// wantRefused changes one thing of a good manifest at a time.
func wantRefused(t *testing.T, good string, k backup.Key) {
	t.Helper()
	for _, lie := range []string{
		strings.Replace(good, k.ID.String(), meta.KeyID{}.String(), 1),
		strings.Replace(good, fmt.Sprintf(`"Check":"%x"`, k.Check), `"Check":"`+strings.Repeat("0", 64)+`"`, 1),
		strings.Replace(good, `"State":"active"`, `"State":"Active"`, 1),
		strings.Replace(good, `"State":"active"`, `"state":"active"`, 1),
		strings.Replace(good, `"State":"active"`, `"State":"active","State":"active"`, 1),
		strings.Replace(good, `"Cluster":`, `"Cluster":"","Cluster":`, 1),
		strings.Replace(good, `"Keys":[`, `"More":[],"Keys":[`, 1),
	} {
		if _, err := backup.DecodeManifest(strings.NewReader(lie)); err == nil || lie == good {
			t.Errorf("a manifest: %s", lie)
		}
	}
}
