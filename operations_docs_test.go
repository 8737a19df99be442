package keyring

// docs/operations.md is held to what there is.

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/peer"
)

// sectionOf is a section of a page, without its heading.
func sectionOf(t *testing.T, page, title string) string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## "+title+"\n")
	if !found {
		t.Fatalf("%s has no section %s", page, title)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	return section
}

// prometheusName is what the module prometheus makes of a metric.
func prometheusName(info MetricInfo) string {
	name := strings.ReplaceAll(info.Name, ".", "_")
	switch {
	case info.Counter:
		name += "_total"
	case info.Unit == "seconds":
		name += "_seconds"
	}
	return name
}

// valuesOf are the values that a label may have, or nil if they are not known.
func valuesOf(label string) (values []string) {
	switch label {
	case "severity":
		return []string{string(SeverityCritical), string(SeverityWarning), string(SeverityNotice)}
	case "certificate":
		return []string{"own", "CA"}
	case "kind":
		for _, p := range problemKinds {
			values = append(values, string(p.kind))
		}
	}
	return values
}

var (
	metricOfAlert = regexp.MustCompile(`\bkeyring_\w+`)
	selector      = regexp.MustCompile(`(\bkeyring_\w+)\{(\w+)="([^"]*)"\}`)
	grouping      = regexp.MustCompile(`by \((\w+)\)`)
)

// TestOperationsPageHasAnAlertForEveryMetric, or says that it needs none; what the alerts name is there: metrics as Prometheus has them,
// with their labels and the values of these.
func TestOperationsPageHasAnAlertForEveryMetric(t *testing.T) {
	section := sectionOf(t, "docs/operations.md", "Alerts")
	infos, alerts := map[string]MetricInfo{}, 0
	for _, info := range MetricInfos() {
		infos[prometheusName(info)] = info
		if !regexp.MustCompile(prometheusName(info) + `\b`).MatchString(section) {
			t.Errorf("no alert has %s", prometheusName(info))
		}
	}
	for line := range strings.Lines(section) {
		for _, name := range metricOfAlert.FindAllString(line, -1) {
			if _, is := infos[name]; !is {
				t.Errorf("%s is no metric: %s", name, line)
			}
		}
		for _, m := range selector.FindAllStringSubmatch(line, -1) {
			if m[2] != infos[m[1]].Label || !slices.Contains(valuesOf(m[2]), m[3]) {
				t.Errorf("%s has the label %q, and not with the value %q: %s", m[1], infos[m[1]].Label, m[3], line)
			}
		}
		for _, by := range grouping.FindAllStringSubmatch(line, -1) {
			for _, name := range metricOfAlert.FindAllString(line, -1) {
				if infos[name].Label != by[1] {
					t.Errorf("%s has the label %q: %s", name, infos[name].Label, line)
				}
			}
		}
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if len(cells) != 3 || !strings.HasPrefix(line, "| `") {
			continue
		}
		if _, err := time.ParseDuration(strings.Replace(cells[1], "2d", "48h", 1)); err != nil || !strings.ContainsAny(cells[0], "<>=") || len(cells[2]) < 10 {
			t.Errorf("an alert has no threshold, time or advice: %v, %s", err, line)
		}
		alerts++
	}
	if alerts < 15 {
		t.Errorf("there are %d alerts", alerts)
	}
}

// TestPagesHaveTheFiguresOfTheCode: those of operators, which follow from the defaults.
func TestPagesHaveTheFiguresOfTheCode(t *testing.T) {
	const day = 24 * time.Hour
	for _, f := range []struct{ page, text string }{
		{"operations", fmt.Sprintf("`keyring_key_active_age_seconds > %.0f`", (defaultEvery + day).Seconds())},
		{"operations", fmt.Sprintf("`keyring_backup_age_seconds > %.0f`", (defaultBackupEvery + defaultBackupEvery/4).Seconds())},
		{"operations", fmt.Sprintf("`keyring_jwks_keys > %d`", maxJWKS)},
		{"operations", fmt.Sprintf("`keyring_certificate_left_seconds < %.0f`", soonest().Seconds())},
		{"operations", fmt.Sprintf("(keyring_key_seals_total[31d])) > %d`", uint64(1)<<36/2)},
		{"operations", fmt.Sprintf("rotation every %.0f days, a backup every %.0f hours", float64(defaultEvery/day), defaultBackupEvery.Hours())},
		{"backup", fmt.Sprintf("`Every` (%.0f hours)", defaultBackupEvery.Hours())},
		{"backup", fmt.Sprintf("above `Keep` (%d)", defaultBackupKeep)},
		{"backup", fmt.Sprintf("once a day, the last %d are kept", defaultBackupKeep)},
		{"recovery", fmt.Sprintf("`RotationPolicy.Undo` (%d days)", defaultUndo/day)},
		{"problems", fmt.Sprintf("more than %d keys", maxJWKS)},
		{"problems", fmt.Sprintf("`Config.Data` after a minute, or %.0f minutes between two records of a scan", scanPatience.Minutes())},
		{"problems", fmt.Sprintf("in use for %.0f minutes, and a warning after a day", firstBackupNotice.Minutes())},
	} {
		text, err := os.ReadFile("docs/" + f.page + ".md")
		if err != nil {
			t.Fatal(err)
		}
		if flat := strings.Join(strings.Fields(string(text)), " "); !strings.Contains(flat, f.text) {
			t.Errorf("docs/%s.md does not have %s", f.page, f.text)
		}
	}
}

// soonest is how long before its end a certificate is told of at the latest.
func soonest() (left time.Duration) {
	now := time.Now()
	for left < 100*24*time.Hour && (peer.Ending{From: now.AddDate(-10, 0, 0), Until: now.Add(left)}).Soon(now) {
		left += time.Hour
	}
	return left
}

// TestOperationsPageListsEveryStep that Config.Audit is told of.
func TestOperationsPageListsEveryStep(t *testing.T) {
	code, err := os.ReadFile("internal/meta/step.go")
	if err != nil {
		t.Fatal(err)
	}
	section := sectionOf(t, "docs/operations.md", "Audit events")
	steps := regexp.MustCompile(`StepKind = "(.+?)"`).FindAllStringSubmatch(string(code), -1)
	for _, m := range steps {
		if !strings.Contains(section, "`"+m[1]+"`") {
			t.Errorf("it does not have the step %q", m[1])
		}
	}
	if len(steps) < 12 {
		t.Errorf("there are %d steps", len(steps))
	}
	table := section[strings.Index(section, "| step |"):]
	for _, m := range regexp.MustCompile("`([a-z ]+)`").FindAllStringSubmatch(table, -1) {
		if !slices.ContainsFunc(steps, func(s []string) bool { return s[1] == m[1] }) {
			t.Errorf("%q is no step", m[1])
		}
	}
}
