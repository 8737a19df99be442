package admin

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"example.com/keyring"
)

// inspect prints what lies in a keystore directory. It asks no server: there may be none.
func (c *cli) inspect(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("inspect", flag.ContinueOnError)
	files := fs.String("kek", "", "KEK `files`, comma-separated")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	keks := []keyring.KEK{keyring.InlineKEK()} // it lies in the files: nobody has to give it
	if *files != "" {
		for _, file := range strings.Split(*files, ",") {
			kek, err := keyring.FileKEK(file)
			if err != nil {
				return err
			}
			keks = append(keks, kek)
		}
	}
	reports, err := keyring.Inspect(ctx, args[0], keks...)
	if err != nil {
		return err
	}
	if err := printReports(c.out, reports); err != nil {
		return err
	}
	bad, keys := 0, 0
	for _, r := range reports {
		if r.Err != nil {
			bad++
		}
		switch r.Kind {
		case keyring.FileKey, keyring.FileRemoved, keyring.FileNomad:
			keys++
		}
	}
	if bad > 0 {
		return finding{fmt.Errorf("%d of %d files are not good", bad, len(reports))}
	}
	if keys == 0 { // or who mistypes the directory would hear that all is well
		return finding{fmt.Errorf("no key file in %s: is it the keystore directory?", args[0])}
	}
	return nil
}

// printReports writes a table of files. The KEKs that open one have a star.
func printReports(out io.Writer, reports []keyring.FileReport) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FILE\tKIND\tALGORITHM\tKEKS\tPROBLEM")
	for _, r := range reports {
		var keks []string
		for _, id := range r.KEKs {
			if slices.Contains(r.Opens, id) {
				id += "*"
			}
			keks = append(keks, line(id))
		}
		problem := "-"
		if r.Err != nil {
			problem = flat(r.Err.Error())
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", line(r.Name), r.Kind, cmp.Or(line(r.Algorithm), "-"), cmp.Or(strings.Join(keks, ","), "-"), problem)
	}
	return w.Flush()
}
