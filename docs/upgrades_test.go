package docs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/peer"
)

// TestUpgradesPageHasEveryVersion: what came with each, of log entries, messages and key files.
func TestUpgradesPageHasEveryVersion(t *testing.T) {
	_, section, _ := strings.Cut(keyringtest.Pages(t)["docs/upgrades.md"], "\n## What came with which version\n")
	section, _, _ = strings.Cut(section, "\n## ")
	got, what := map[string][]string{}, ""
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || strings.HasPrefix(line, "|---") || strings.Contains(line, "| version |") {
			continue
		}
		if first := strings.TrimSpace(cells[1]); first != "" {
			what = first
		}
		got[what] = append(got[what], strings.TrimSpace(cells[2]))
	}
	for what, versions := range map[string][2]int{"log entries": {1, meta.Version}, "messages": {2, peer.Version}, "key files": {2, nks.FileVersion}} {
		var want []string
		for v := versions[0]; v <= versions[1]; v++ {
			want = append(want, fmt.Sprint(v))
		}
		if !slices.Equal(got[what], want) {
			t.Errorf("%s: the page has the versions %q, want %q", what, got[what], want)
		}
	}
}

// raftsOfCI are the versions of raft with which .ci/hosts builds a host: that of go.mod, and a newer one.
func raftsOfCI(t *testing.T) (older, newer string) {
	t.Helper()
	root := keyringtest.Root(t)
	find := func(file, pattern string) string {
		b, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(pattern).FindSubmatch(b)
		if m == nil {
			t.Fatalf("%s has no %s", file, pattern)
		}
		return string(m[1])
	}
	older, newer = find("go.mod", `hashicorp/raft (v\S+)\n`), find(".ci/hosts", `(?m)^newer=(v\S+)$`)
	if built := find(".ci/hosts", `(?m)^program (v\S+) `); built != older {
		t.Errorf(".ci/hosts builds a host with raft %s, and go.mod has %s", built, older)
	}
	if find(".ci/hosts", `(?m)^program ("\$newer") `) == "" {
		t.Error(".ci/hosts builds no host with the newer raft")
	}
	find(".ci/hosts", `(?m)^\tgo (mod tidy -e)$`)
	return older, newer
}

// TestUpgradesPageHasTheRaftsOfCI with which hosts are built and tested.
func TestUpgradesPageHasTheRaftsOfCI(t *testing.T) {
	older, newer := raftsOfCI(t)
	boltdb := regexp.MustCompile(`raft-boltdb/v2 (v\S+)\n`).FindStringSubmatch(repositoryFile(t, "go.mod"))
	checkFigures(t, []figure{
		{"docs/upgrades.md", fmt.Sprintf("build with raft %s and with %s.", older, newer)},
		{"docs/upgrades.md", fmt.Sprintf("Package `node` needs %s, because raft-boltdb %s does", older, boltdb[1])},
		{"docs/upgrades.md", fmt.Sprintf("With %s the command is", newer)},
		{"docs/performance.md", fmt.Sprintf("hashicorp/raft %s", older)},
	})
}

// TestChangelogHasTheFormats that this build writes.
func TestChangelogHasTheFormats(t *testing.T) {
	checkFigures(t, []figure{
		{"CHANGELOG.md", fmt.Sprintf("log entries and snapshots up to version %d, messages up to version %d, key files up to version %d, and backups of the format `%s`",
			meta.Version, peer.Version, nks.FileVersion, backup.Format)},
		{"CHANGELOG.md", fmt.Sprintf("Key files of version %d", nks.FileVersion)},
	})
}

// TestFiguresOfUpgrades: how long a first key waits for a server that is down.
func TestFiguresOfUpgrades(t *testing.T) {
	checkFigures(t, []figure{
		{"docs/upgrades.md", fmt.Sprintf("holds up the first key of a new cluster for %d seconds", secondsOf(t, "internal/plan/firstkey.go", "downPatience"))},
	})
}

// secondsOf is the value of a constant that is written as a number of seconds.
func secondsOf(t *testing.T, file, name string) (n int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(keyringtest.Root(t), filepath.FromSlash(file)))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`\b` + name + `\s+= (\d+) \* time\.Second\b`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("%s has no %s in seconds", file, name)
	}
	fmt.Sscan(string(m[1]), &n)
	return n
}
