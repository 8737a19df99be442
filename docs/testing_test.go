package docs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"example.com/keyring/internal/keyringtest"
)

// TestTestingPageHasTheStepsOfCI: the modules that .ci/run tests, what it installs, and that it does what the page says.
func TestTestingPageHasTheStepsOfCI(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(keyringtest.Root(t), ".ci/run"))
	if err != nil {
		t.Fatal(err)
	}
	run, page := string(b), keyringtest.Pages(t)["docs/testing.md"]
	modules := regexp.MustCompile(`(?m)^\tcd (\w+)$`).FindAllStringSubmatch(run, -1)
	tools := strings.Fields(regexp.MustCompile(`--no-install-recommends (.*)`).FindStringSubmatch(run)[1])
	for _, m := range modules {
		if !strings.Contains(page, "`"+m[1]+"`") {
			t.Errorf("testing.md does not name module %s", m[1])
		}
	}
	for _, tool := range tools {
		if tool = strings.TrimSuffix(tool, "-driver"); !strings.Contains(page, tool) {
			t.Errorf("testing.md does not name %s", tool)
		}
	}
	for _, step := range []string{
		"gofmt -l .", "go vet ./...", `vet_on "$platform" .`, "\nstep go test ./...\n", "step go test -race ", " -skip '", "step go run ./examples/failover",
		"step go build .", "step .ci/hosts", "-bench . -benchtime 3x",
	} {
		if !strings.Contains(run, step) {
			t.Errorf(".ci/run has no %q any more: see what testing.md says of it", step)
		}
	}
	if len(modules) < 4 || len(tools) < 4 {
		t.Errorf("%d modules, %d tools", len(modules), len(tools))
	}
}

// TestTestingPageCountsTheFuzzTargets of all modules.
func TestTestingPageCountsTheFuzzTargets(t *testing.T) {
	n := 0
	for _, text := range keyringtest.TestFiles(t) {
		n += len(regexp.MustCompile(`(?m)^func Fuzz\w+\(`).FindAllString(text, -1))
	}
	checkFigures(t, []figure{{"docs/testing.md", fmt.Sprintf("| %d targets, ", n)}})
}
