"""An OpenAI-compatible server over the engine: any method in any mix behind one endpoint, and a page to try it on."""
