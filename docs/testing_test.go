package docs_test

import (
	"fmt"
	"go/build"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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

// TestTestingPageHasThePlatforms on which .ci/run has code checked, and the version of Go that go.mod asks for.
func TestTestingPageHasThePlatforms(t *testing.T) {
	read := func(file, pattern string) string {
		b, err := os.ReadFile(filepath.Join(keyringtest.Root(t), file))
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(pattern).FindSubmatch(b)
		if m == nil {
			t.Fatalf("%s has no %s", file, pattern)
		}
		return string(m[1])
	}
	list := func(words []string, format string) string {
		last := len(words) - 1
		for i, w := range words {
			words[i] = fmt.Sprintf(format, w)
		}
		return strings.Join(words[:last], ", ") + " and " + words[last]
	}
	platforms := strings.Fields(read(".ci/run", `for platform in (.*); do`))
	modules := strings.Fields(read(".ci/run", `for module in (.*); do\n\tvet_on linux/386 `))
	version := "Go " + read("go.mod", `(?m)^go (\d+\.\d+)`)
	checkFigures(t, []figure{
		{"docs/testing.md", "For " + list(platforms, "%s") + " `.ci/run`"},
		{"docs/testing.md", "those of " + list(modules, "`%s`") + " for linux/386 alone"},
		{"docs/testing.md", "It needs " + version + ","},
		{"docs/performance.md", "with " + version + " and hashicorp/raft"},
		{"CONTRIBUTING.md", version + " on Linux"},
	})
}

// TestTestingPageCountsTheFuzzTargets of all modules.
func TestTestingPageCountsTheFuzzTargets(t *testing.T) {
	n := 0
	for _, text := range keyringtest.TestFiles(t) {
		n += len(regexp.MustCompile(`(?m)^func Fuzz\w+\(`).FindAllString(text, -1))
	}
	checkFigures(t, []figure{{"docs/testing.md", fmt.Sprintf("| %d targets, ", n)}})
}

// TestTestingPageHasTheArchitectures on which package node does not build: what raft-boltdb needs has no size of a map there.
func TestTestingPageHasTheArchitectures(t *testing.T) {
	list := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/boltdb/bolt")
	list.Dir = keyringtest.Root(t)
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := strings.TrimSpace(string(out))
	builds := func(arch string) bool {
		context := build.Default
		context.GOOS, context.GOARCH = "linux", arch
		p, err := context.ImportDir(dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(p.GoFiles, func(name string) bool {
			b, err := os.ReadFile(filepath.Join(dir, name))
			return err == nil && strings.Contains(string(b), "const maxMapSize =")
		})
	}
	for arch, want := range map[string]bool{
		"amd64": true, "arm64": true, "386": true, "riscv64": false, "loong64": false, "mips": false, "mipsle": false, "mips64": false, "mips64le": false,
	} {
		if builds(arch) != want {
			t.Errorf("it builds on linux/%s: %t", arch, !want)
		}
	}
	checkFigures(t, []figure{{"docs/testing.md", "On linux/riscv64, linux/loong64 and the MIPS architectures package `node` does not build"}})
}
