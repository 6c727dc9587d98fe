// dashboard-check reads dashboards as Grafana's own types, strictly, and says what does not fit.
package main

import (
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

func main() {
	// Another kind of panel or data source would be taken unread.
	cog.NewRuntime().RegisterPanelcfgVariant(timeseries.VariantConfig())
	cog.NewRuntime().RegisterDataqueryVariant(prometheus.VariantConfig())
	failed := false
	for _, path := range os.Args[1:] {
		if err := check(path); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}

func check(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var board dashboard.Dashboard
	if err := wrong(board.UnmarshalJSONStrict(raw)); err != nil {
		return err
	}
	return wrong(board.Validate())
}

// wrong drops an empty list of errors, which is no nil.
func wrong(err error) error {
	if err == nil || err.Error() == "" {
		return nil
	}
	return err
}
